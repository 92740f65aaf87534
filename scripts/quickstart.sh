#!/usr/bin/env bash
# Upscale a packaged photo x4 with the built-in model and show it beside its bicubic enlargement.
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
prepare_venv

PATH=$PWD/.venv/bin:$PATH
photo=upsr_jax/assets/photos/chelsea.png
upsr upscale "$photo" --out out --overwrite
python scripts/before_after.py "$photo" out/chelsea.png out/before_after.png
