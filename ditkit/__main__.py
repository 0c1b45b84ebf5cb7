"""`python -m ditkit VERB ...`: the same as the `ditkit` command."""

from ditkit.cli import main

if __name__ == "__main__":
    main()
