"""What carries.

The ports, the durable spool, the transfer of custody, and the adapters to the world.
"""
