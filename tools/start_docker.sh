#!/usr/bin/env bash
# A Docker with Compose, for the tests of the composed fleet on a Debian machine that has none: `bash tools/start_docker.sh`
# as root. The engine is Debian's. Base images are pulled where a registry answers; elsewhere stand-ins under their names
# are made of Debian's packages (DEBIAN_MIRROR: from where, by default this machine's own mirror), with what pip is told on
# this machine. What is there already is left as it is.
set -euo pipefail
log=${TMPDIR:-/tmp}/quire-start-docker.log
trap 'status=$?; rm -rf "${work:-}"; if ((status)); then tail -n 20 "$log" >&2; fi' EXIT
exec 3>&1 >>"$log" 2>&1

packages=()
command -v dockerd || packages+=(docker.io)
command -v docker-compose || docker compose version || packages+=(docker-compose)
command -v debootstrap || packages+=(debootstrap)
if ((${#packages[@]})); then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}"
fi

if ! docker info; then
  setsid --fork dockerd
  for _ in {1..60}; do
    docker info && break
    sleep 1
  done
  docker info
fi

work=$(mktemp -d)
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -v security | head -n 1)}
authorities=/etc/ssl/certs/ca-certificates.crt

# A root file system of bookworm with these packages, in $work/$1.
bootstrap() {
  debootstrap --variant=minbase --include="$2" bookworm "$work/$1" "${mirror:?no Debian mirror in the apt sources: set DEBIAN_MIRROR}"
}

has() {
  docker image inspect "$1" || timeout 60 docker pull "$1"
}

python_stand_in() {
  bootstrap python python3,python3-venv,python3-pip,ca-certificates
  local root=$work/python links
  ln -s /usr/bin/python3 "$root/usr/local/bin/python"
  ln -s /usr/bin/python3 "$root/usr/local/bin/python3"
  rm -f "$root"/usr/lib/python3.11/EXTERNALLY-MANAGED
  cp "$authorities" "$root$authorities"
  # Wheels that pip finds in a folder here, it finds in the image.
  links=${PIP_FIND_LINKS:-$(python3 -m pip config get global.find-links || true)}
  mkdir "$root/wheels"
  if [[ -d $links ]]; then cp -r "$links/." "$root/wheels"; fi
  tar -C "$root" -c . | docker import \
    --change "ENV PIP_CERT=$authorities SSL_CERT_FILE=$authorities PIP_FIND_LINKS=/wheels" \
    --change 'CMD ["python3"]' - python:3.11-slim-bookworm
}

redis_stand_in() {
  bootstrap redis redis-server
  tar -C "$work/redis" -c . | docker import --change 'WORKDIR /data' --change 'VOLUME /data' \
    --change 'EXPOSE 6379' --change 'CMD ["redis-server"]' - redis:7-bookworm
}

has python:3.11-slim-bookworm || python_stand_in
has redis:7-bookworm || redis_stand_in
docker image ls --filter dangling=false --format '{{.Repository}}:{{.Tag}} {{.Size}}' >&3
