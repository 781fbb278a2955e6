"""Bad lines: one that loses, doubles, delays and reorders messages, one that is slow and breaks."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable

from cloud.broker.connection import Connection


class LossyConnection:
    """A control plane's connection whose QoS 0 messages suffer, both ways.

    A tenth is lost, a tenth doubled, and of the rest a third is held back behind later ones for
    up to `delay_s`.
    """

    def __init__(self, connection: Connection, seed: int, delay_s: float = 0.05) -> None:
        self._connection = connection
        self._rng = random.Random(seed)
        self._delay_s = delay_s
        self._lock = threading.Lock()
        self._timers: list[threading.Timer] = []
        self.lost = self.doubled = self.delayed = 0

    def subscribe(self, topic_filter: str, handler: Callable[[str, bytes], None]) -> None:
        self._connection.subscribe(
            topic_filter,
            lambda topic, payload: self._suffer(lambda: handler(topic, payload)),
        )

    def publish(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> None:
        self._suffer(lambda: self._connection.publish(topic, payload, qos, retain))

    def stop(self) -> None:
        for timer in self._timers:
            timer.cancel()
            timer.join()

    def _suffer(self, send: Callable[[], object]) -> None:
        with self._lock:
            fate, delay_s = self._rng.random(), self._rng.uniform(0.0, self._delay_s)
        if fate < 0.1:
            self.lost += 1
            return
        if fate < 0.4:
            self.delayed += 1
            timer = threading.Timer(delay_s, send)
            self._timers.append(timer)
            timer.start()
            return
        send()
        if fate > 0.9:
            self.doubled += 1
            send()


class BreakingLine:
    """A TCP relay that delays what it carries, and breaks after some bytes, again and again."""

    def __init__(self, port: int, *, delay_s: float = 0.01, breaks_after: int = 1 << 20) -> None:
        self._port = port
        self._delay_s = delay_s
        self._breaks_after = breaks_after
        self._stopping = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]
        self.breaks = 0

    def __enter__(self) -> BreakingLine:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                device, _ = self._listener.accept()
            except OSError:
                return
            try:
                broker = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                device.close()
                continue
            self._start(self._carry, device, broker)

    def _carry(self, device: socket.socket, broker: socket.socket) -> None:
        """Both ways until the line breaks."""
        with device, broker:
            device.settimeout(0.2)
            broker.settimeout(0.2)
            up = threading.Thread(target=self._copy, args=(device, broker, 1 << 40), daemon=True)
            up.start()
            if self._copy(broker, device, self._breaks_after):
                self.breaks += 1
            for end in (device, broker):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            up.join(10)

    def _copy(self, source: socket.socket, to: socket.socket, most: int) -> bool:
        """Whether it ended because `most` bytes were carried."""
        carried = 0
        while not self._stopping.is_set() and carried < most:
            try:
                data = source.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                return False
            if not data:
                return False
            self._stopping.wait(self._delay_s)
            try:
                to.sendall(data)
            except OSError:
                return False
            carried += len(data)
        return carried >= most
