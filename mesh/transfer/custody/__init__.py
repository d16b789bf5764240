"""Custody: what a gateway holds for others, unopened, until the next holder has it.

A store of its own, made of numbered journals (``journal``) of entries (``entry``). ``lane`` says
what is held of one lane, ``recovery`` makes that of what stands in the journals, ``writer`` makes
groups durable, and ``custody`` is the single owner of all of it, which a forwarder drains.

Assumptions about the disk: what was synced stays, but for rot; what was not may be there in any
part; a name is durable once its folder was synced. Promises: what a receipt states is durable, or
is gone under a new life of the holder; a store opens whatever it finds; memory is bounded by the
number of batches and lanes, never by their bytes.
"""
