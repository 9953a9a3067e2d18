"""`python -m cli`: the `scoreboard` command where its script is not on PATH."""

from cli.main import main

if __name__ == "__main__":
    main()
