"""`python -m vlmsteer`: the command line, also for launchers that start modules."""

from vlmsteer.cli import main

main()
