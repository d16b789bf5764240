"""Looking at a spool without owning it: nothing here locks, writes or waits for the owner."""
