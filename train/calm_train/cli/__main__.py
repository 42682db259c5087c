"""`python -m calm_train.cli`, for torchrun and accelerate."""

from calm_runtime.errors import CalmError
from calm_train.cli import train

if __name__ == "__main__":
    try:
        train(prog_name="calm train")
    except CalmError as error:
        raise SystemExit(f"calm train: {error}") from None
