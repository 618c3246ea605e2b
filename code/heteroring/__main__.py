"""`python -m heteroring`, for a checkout that is not installed."""

from heteroring.cli import main

if __name__ == "__main__":
    main()
