#!/bin/sh
# Makes the environments that the comparisons run other libraries in: FOLDER/trl and FOLDER/tunix.
#
#   sh bench/peers/environments.sh FOLDER
#
# TRL_PYTHON and TUNIX_PYTHON name their interpreters; both are python3 otherwise, and Tunix needs 3.11 or later.
# TORCH_INDEX names an index that has torch without CUDA; without it, pip takes the usual one.
# An environment that cannot be made is reported, and the comparisons go on without it.
set -u
folder=${1:?give the folder of the environments}
index=${TORCH_INDEX-}
failed=0

make() { # NAME PYTHON REQUIREMENTS...
  name=$1 python=$2
  shift 2
  if "$python" -m venv "$folder/$name" && "$folder/$name/bin/python" -m pip install --quiet "$@"; then
    echo "$name: $("$folder/$name/bin/python" -m pip list --format=freeze | grep -E '^(torch|trl|transformers|google-tunix|jax)=' | tr '\n' ' ')"
  else
    echo "$name: the environment could not be made; its rows will be reported as unavailable" >&2
    rm -rf "${folder:?}/$name"
    failed=1
  fi
}

mkdir -p "$folder"
make trl "${TRL_PYTHON:-python3}" torch==2.13.0 trl==1.16.0 transformers==5.24.0 ${index:+--extra-index-url "$index"}
make tunix "${TUNIX_PYTHON:-python3}" google-tunix==0.1.7
exit $failed
