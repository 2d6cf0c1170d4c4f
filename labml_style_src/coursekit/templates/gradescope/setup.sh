#!/usr/bin/env bash
# Gradescope runs this once, as root, when it builds the image: the only time the autograder needs the network.
# Choose the base image Ubuntu 24.04 (Python 3.12), and a container with 2 GB of memory or more.
set -euo pipefail

root="${AUTOGRADER_ROOT:-/autograder}"
source="$root/source"

python=""
find_python() {
  local name
  for name in python3.13 python3.12 python3.11 python3; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      python="$name"
      return
    fi
  done
}
find_python
if [ -z "$python" ]; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q
  for name in python3.12 python3.11; do
    if apt-get install -q -y --no-install-recommends "$name" "$name-venv"; then break; fi
  done
  find_python
fi
if [ -z "$python" ]; then
  echo "setup.sh: no Python from 3.11 to 3.13 can be had here: choose the base image Ubuntu 24.04" >&2
  exit 1
fi

"$python" -m venv "$root/venv"
options=(--constraint "$source/constraints.txt" --requirement "$source/requirements.txt")
if [ -d "$source/wheels" ]; then
  options+=(--no-index --find-links "$source/wheels")
else
  # PyTorch without CUDA: a tenth of the size.
  options+=(--extra-index-url https://download.pytorch.org/whl/cpu)
fi
"$root/venv/bin/python" -m pip install --no-cache-dir --disable-pip-version-check "${options[@]}"

# Whatever is wrong shows now, and not when the first student submits.
"$root/venv/bin/python" -I "$source/grade.py" "$root" --check
chmod -R go-rwx "$source"
