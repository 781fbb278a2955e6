"""Commands to devices: asked for, sent, answered, run out.

store    asking for commands and taking them back, in one transaction each
sweep    what time does: sending, sending again, expiry, time-outs; in the orchestrator's turn
answers  what devices say, applied by ingest

Rules:
    * A command and the message that carries it are written in one transaction.
    * A device that is offline gets its command when it comes back, until it expires: commands wait
      here, for a broker forgets a session that is away for long.
    * How far a command is, `fleet.commands.machine` decides; every change of a row goes through it.
    * Who asked, who took back and how each ended is in the audit; a row is never removed.
"""
