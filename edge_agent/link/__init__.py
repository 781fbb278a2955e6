"""The device's line to its control plane: MQTT, and the journal of what waits for it.

`mqtt` is the only importer of paho on the device.  `outbox` keeps what must arrive, `uplink` sends
it until the control plane says that it is committed, `fetch` and `chunks` are the adapters through
which the update room asks for metadata and bytes.

Rules:
    * Nothing journalled is dropped because the broker accepted it: only the control plane's own
      acknowledgement, after its commit, removes a row.
    * The line may be gone for ever; nothing here blocks a prediction.
"""
