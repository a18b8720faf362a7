#!/usr/bin/env bash
# Locates the neurons behind one built-in fact in the default model and proves them; then edits the same fact, shows
# what else changes, and takes the edit off again:
#   scripts/demo.sh [knowedit locate's options]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
export HF_HUB_OFFLINE=1
fact=landmark-city/eiffel-tower
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

knowedit locate --fact $fact "$@"

echo
echo "== The same fact, edited (the first time the keys' covariance is estimated, half a minute more)"
knowedit edit --fact $fact --out "$folder/edit"
echo
echo "== The edit as a file"
knowedit show "$folder/edit"
echo
echo "== What the model says without and with it"
knowedit generate "The Eiffel Tower is located in the city of" --edit "$folder/edit"
echo
echo "The edit was taken off before the left column was written: the model is as it was, bit for bit."
