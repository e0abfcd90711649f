"""The only Ray code: who runs what, where, how often, and what happens when it dies. No click, no tensor maths."""

import os

# Ray's own handler would answer SIGTERM with a stack trace and an abort, from the moment that Ray connects until it can
# be replaced (measured, 2.60). Read when ray is imported.
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
