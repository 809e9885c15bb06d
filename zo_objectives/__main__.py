"""`python -m zo_objectives`."""

from zo_objectives.cli import main

if __name__ == "__main__":
    main()
