"""The only Ray code: who runs what, where, how often, and what happens when it dies. No click, no tensor maths."""
