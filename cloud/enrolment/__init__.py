"""Identities of devices in the database: enrolment, renewal, revocation, and what enforces it.

Rules:
    * Every certificate that was given out has a row until some time after its end; the revocation
      list is made of these rows and of nothing else.
    * A claim is used in the transaction that makes its device.
    * Revoking is a row first; that the broker refuses it is brought about afterwards, by whoever
      runs `enforcement`, and seen before it is believed.
    * Refusals are audited, but nobody can make the audit grow without end.

The decisions are `fleet.enrolment`'s; HTTP is `cloud.api`'s.
"""
