"""Convert PyTorch weights to a model folder, or a model folder back to PyTorch.

python scripts/convert_torch.py upsr.pth atd_real.pth weights/
python scripts/convert_torch.py weights/ torch_files/
"""

import argparse
import sys
from pathlib import Path

from upsr_jax.weights.convert_files import convert_files


def main() -> None:
    """Parse the command line, convert and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="+", type=Path, help=".pth files, or one model folder")
    parser.add_argument("destination", type=Path, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    arguments = parser.parse_args()
    try:
        report = convert_files(arguments.sources, arguments.destination, arguments.overwrite)
    except (OSError, ImportError, ValueError) as error:
        sys.exit(f"convert_torch: {error}")
    print("\n".join(report))


if __name__ == "__main__":
    main()
