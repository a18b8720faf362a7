#!/usr/bin/env bash
# Locates the neurons behind one built-in fact in the default model and proves them:
#   scripts/demo.sh [knowedit locate's options]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
export HF_HUB_OFFLINE=1
# layers 0 and 1 of this model hold massive activations that every prompt needs (benchmarks/ leaves them out, too)
exec knowedit locate --fact landmark-city/eiffel-tower --layers 2-29 --adjust "$@"
