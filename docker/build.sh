#!/usr/bin/env bash
# Builds the image's CPU target from a bare Debian without a Docker engine, and runs `doctor` and
# the main job inside it.
#
#   docker/build.sh [--ca-bundle FILE] [--pip-conf FILE] [--lock NAME] [--mirror URL] [--suite NAME]
#
#   --ca-bundle    certificates for a package index behind a proxy, --pip-conf: pip's configuration,
#                  such as an index of your own: both are there while the image is built, and never
#                  part of a layer
#   --lock         requirements.lock, or requirements.txt where that index serves other builds
#   --mirror       of Debian, --suite: its release
#
# Needs root, buildah and debootstrap (Debian: apt-get install buildah debootstrap).
set -euo pipefail
cd "$(dirname "$0")/.."

ca=/etc/ssl/certs/ca-certificates.crt
conf=
lock=requirements.lock
mirror=http://deb.debian.org/debian
suite=bookworm
while [ $# -gt 0 ]; do
  case $1 in
    --ca-bundle) ca=$2 ;;
    --pip-conf) conf=$2 ;;
    --lock) lock=$2 ;;
    --mirror) mirror=$2 ;;
    --suite) suite=$2 ;;
    *) echo "docker/build.sh: unknown option $1; see the head of this file" >&2; exit 2 ;;
  esac
  [ $# -ge 2 ] || { echo "docker/build.sh: $1 wants a value" >&2; exit 2; }
  shift 2
done
for tool in buildah debootstrap; do
  command -v "$tool" > /dev/null || { echo "docker/build.sh: install $tool" >&2; exit 2; }
done
[ "$(id -u)" = 0 ] || { echo "docker/build.sh: root is needed to make a bare Debian" >&2; exit 2; }
[ -r "$ca" ] || { echo "docker/build.sh: --ca-bundle $ca cannot be read" >&2; exit 2; }
[ -z "$conf" ] || [ -r "$conf" ] || { echo "docker/build.sh: --pip-conf $conf cannot be read" >&2; exit 2; }

base=largebatch-debian:$suite
image=largebatch:cpu
containers=()
cleanup() {
  for container in "${containers[@]}"; do buildah rm "$container" > /dev/null || true; done
}
trap cleanup EXIT

if ! buildah inspect --type image "$base" > /dev/null 2>&1; then
  echo "== a bare Debian $suite"
  bare=$(buildah from scratch)
  containers+=("$bare")
  root=$(buildah mount "$bare")
  debootstrap --variant=minbase "$suite" "$root" "$mirror" > /dev/null
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
  buildah umount "$bare" > /dev/null
  buildah commit --quiet "$bare" "$base" > /dev/null
fi

echo "== the image"
inside=/run/ca-bundle.crt
buildah bud --isolation=chroot --network=host --format docker --file docker/Dockerfile \
  --target cpu --tag "$image" --volume "$ca:$inside:ro" --build-arg "BASE=localhost/$base" \
  ${conf:+--secret "id=pip,src=$conf"} --build-arg "LOCK=$lock" --build-arg "PIP_CERT=$inside" .

echo "== inside it"
container=$(buildah from "$image")
containers+=("$container")
inside() { buildah run --isolation=chroot --network=host --user largebatch "$container" -- "$@"; }
inside largebatch doctor
inside largebatch train --run.nproc=2 --run.dir=runs/digits
inside test -s runs/digits/report.html
echo "== $image: $(buildah images --format '{{.Size}}' "$image")"
