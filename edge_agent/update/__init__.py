"""Signed updates on a device: whom to believe, how bytes arrive, which version serves.

`trust` verifies metadata, `transfer` and `decode` get bundles, `bundle` and `store` keep them in
slots, `selftest` and `health` judge them, `updater` drives it all through the ports of `ports`.

Rules:
    * Nothing is served, executed or even unpacked whose digest was not signed for this device.
    * At any instant of a power cut, the old version or the new one is on disk and startable.
    * No transport is known here: adapters implement the ports.
    * This file imports nothing: the self-test's child must start fast.
"""
