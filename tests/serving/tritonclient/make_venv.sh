#!/usr/bin/env bash
# Makes the virtual environment of the tests with the real tritonclient, and prints its Python.
#
#   export ANYNEST_TRITONCLIENT_PYTHON="$(tests/serving/tritonclient/make_venv.sh)"
#
# tritonclient needs older releases of packages than anynest, so the two do not share one. The folder
# is the argument, or one in the cache; what is there and complete is used again.
set -euo pipefail
requirement='tritonclient[http,grpc]==2.73.0'
folder="${1:-${XDG_CACHE_HOME:-$HOME/.cache}/anynest/tritonclient}"
if [ "$(cat "$folder/.requirement" 2>/dev/null || true)" != "$requirement" ]; then
  if [ -e "$folder" ] && [ ! -e "$folder/pyvenv.cfg" ]; then
    echo "$folder must be a virtual environment or not exist" >&2
    exit 1
  fi
  "${PYTHON:-python3}" -m venv --clear "$folder" >&2
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$requirement" >&2
  echo "$requirement" > "$folder/.requirement"
fi
echo "$folder/bin/python"
