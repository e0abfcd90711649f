"""Commands: parse, call, print, set the exit code. Nothing here imports torch or ray before a command runs."""
