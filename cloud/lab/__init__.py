"""Measuring candidates on lab devices of the fleet, and what is learned from it.

    orders       one measurement on one device: made, sent, ended (docs/adr/0010)
    assigning    what the director signs for a device that measures
    results      a device's signed answer, verified against its registered certificate
    measurer     the optimizer's port `Measurer`, on devices, over the public API
    predictions  the predictor's points in the database

Rules:
    * A device measures one order at a time; an order in a final state never changes again, so a
      result that comes twice, or that belongs to another order, changes nothing.
    * Orders leave through the outbox, answers come in through the ingest: both survive a restart.
    * Nothing here is a release.  What the lab names cannot be assigned, and is served to the device
      that it was ordered on alone.
"""
