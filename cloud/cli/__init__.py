"""The command `skerry`.  Owns words, tables and exit codes; decides nothing.

Everything but `up`, `run` and `down` goes through `fleet.client` to the public API, so whatever is
done here can be scripted against it.  Exit codes: 0 done, 1 it did not hold (a job failed, a gate
or rollout stopped), 2 the request or the machine is wrong (one line on standard error).
"""
