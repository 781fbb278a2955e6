"""How a device becomes a member of the fleet: the certificate authority and the claims.

Rules:
    * A claim is used once, ends, can be revoked, and only the digest of its secret is stored.
    * The device draws its own key; the authority sees a certificate request and never the key.
    * A certificate's common name is the device's id; it is also its MQTT user, so names of the
      control plane are never given to a device.

Does not know the database or HTTP: `cloud.api` stores claims and maps the errors.
"""
