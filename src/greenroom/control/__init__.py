"""Acts: each loop observes the store, asks `greenroom.core` what to do, and does it. Loops never call each other."""
