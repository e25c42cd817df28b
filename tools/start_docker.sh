#!/usr/bin/env bash
# A Docker with Compose, for the tests of the composed fleet on a Debian machine that has none: `bash tools/start_docker.sh`
# as root; tools/stop_docker.sh ends it. The engine is Debian's. Base images are pulled where a registry answers; elsewhere
# stand-ins under their names are made of Debian's packages (DEBIAN_MIRROR: from where, by default this machine's own
# mirror), with what pip is told on this machine. What is there already is left as it is. Exit status 0 only where
# containers have what the fleet's build and start need; else the last line says what is missing.
set -euo pipefail
log=${TMPDIR:-/tmp}/quire-start-docker.log # and the engine's own, $log.engine
pidfile=/run/quire-dockerd.pid
python=python:3.11-slim-bookworm
redis=redis:7-bookworm
authorities=/etc/ssl/certs/ca-certificates.crt
here=$(dirname "$0")

exec 3>&1 4>&2 >"$log" 2>&1
trap leave EXIT

leave() {
  local status=$?
  rm -rf "${work:-}"
  ((status)) || return 0
  tail -n 20 "$log" >&4
  if [[ -n ${reason:-} ]]; then echo "no Docker for the fleet: $reason" >&4; fi
  if [[ -n ${started:-} ]]; then bash "$here/stop_docker.sh"; fi
}

missing() {
  reason=$*
  exit 1
}

install() {
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" || missing "apt-get cannot install $*"
}

answers() {
  docker info >/dev/null 2>&1
}

# Where Debian's package starts its engine as a system's service, that is the one; elsewhere one of our own.
start_engine() {
  local pid=
  if [[ -d /run/systemd/system ]]; then
    systemctl start docker || missing "systemctl cannot start it"
  elif ! pgrep -x dockerd; then
    started=yes
    setsid dockerd --pidfile "$pidfile" >"$log.engine" 2>&1 3>&- 4>&- &
    pid=$!
  fi
  for _ in {1..120}; do
    if answers; then return; fi
    [[ -z $pid ]] || kill -0 "$pid" 2>/dev/null || missing "its engine ended while it started: $(tail -n 3 "$log.engine")"
    sleep 1
  done
  missing "its engine does not answer"
}

# Disk for the images with CPU wheels: 4 GB. The worker's build holds what make install puts in .venv, twice: with CUDA's
# torch that is most of it.
check_room() {
  local driver venv_gb wanted_gb free_gb memory_gb
  driver=$(docker info --format '{{.Driver}}')
  [[ $driver != vfs ]] || missing "the storage driver vfs copies every layer whole"
  free_gb=$(df --output=avail -B1G "$(docker info --format '{{.DockerRootDir}}')" | tail -n 1)
  venv_gb=$(du -s -BG "$here/../.venv" | cut -d G -f 1 || true)
  wanted_gb=$((4 + 2 * ${venv_gb:-6}))
  ((free_gb >= wanted_gb)) || missing "$free_gb GB of disk are free, of $wanted_gb"
  memory_gb=$(awk '/^MemAvailable/ {print int($2 / 1e6)}' /proc/meminfo)
  ((memory_gb >= 4)) || missing "$memory_gb GB of memory are free, of 4"
}

# A root file system of bookworm with these packages, in $work/$1. Not under /tmp, which may forbid devices.
bootstrap() {
  local mirror=${DEBIAN_MIRROR:-}
  if [[ -z $mirror ]]; then
    # shellcheck disable=SC2016  # apt's own variables
    mirror=$(apt-get indextargets --format '$(ORIGIN) $(LABEL) $(COMPONENT) $(SITE)' 'Created-By: Packages' |
      awk '!found && $1 == "Debian" && $2 == "Debian" && $3 == "main" {print $4; found = 1}')
  fi
  command -v debootstrap || install debootstrap
  debootstrap --variant=minbase --include="$2" bookworm "$work/$1" "${mirror:-http://deb.debian.org/debian}"
}

has() {
  docker image inspect "$1" || timeout 300 docker pull "$1"
}

python_stand_in() {
  bootstrap python python3,python3-venv,python3-pip,ca-certificates
  local root=$work/python links
  ln -s /usr/bin/python3 "$root/usr/local/bin/python"
  ln -s /usr/bin/python3 "$root/usr/local/bin/python3"
  rm -f "$root"/usr/lib/python3.11/EXTERNALLY-MANAGED
  if [[ -e $authorities ]]; then cp "$authorities" "$root$authorities"; fi
  # Wheels that pip finds in a folder here, it finds in the image.
  links=${PIP_FIND_LINKS:-$(python3 -m pip config get global.find-links || true)}
  mkdir "$root/wheels"
  if [[ -d $links ]]; then cp -r "$links/." "$root/wheels"; fi
  tar -C "$root" -c . | docker import \
    --change "ENV PIP_CERT=$authorities SSL_CERT_FILE=$authorities PIP_FIND_LINKS=/wheels" \
    --change 'CMD ["python3"]' - "$python"
  rm -rf "$root"
}

redis_stand_in() {
  bootstrap redis redis-server
  tar -C "$work/redis" -c . | docker import --change 'WORKDIR /data' --change 'VOLUME /data' \
    --change 'EXPOSE 6379' --change 'CMD ["redis-server"]' - "$redis"
  rm -rf "$work/redis"
}

# Containers reach package indexes while images are built, and a published port leads into one on a network of its own.
check_containers() {
  local address network=quire-probe container=quire-probe
  docker run --rm "$python" sh -c 'python3 -m pip download --quiet --no-deps --dest /tmp "pip>=25.1" &&
    apt-get update -qq -o APT::Update::Error-Mode=any' || missing "containers do not reach the package indexes"
  docker rm --force "$container" || true
  docker network rm "$network" || true
  docker network create "$network" || missing "it can make no network"
  docker run --detach --rm --name "$container" --network "$network" --publish 127.0.0.1::80 "$python" \
    python3 -m http.server 80 || missing "no container with a published port starts"
  address=$(docker port "$container" 80)
  for _ in {1..60}; do
    if python3 -c "import urllib.request as u; u.urlopen('http://$address', timeout=5)"; then address=; break; fi
    sleep 1
  done
  docker rm --force "$container"
  docker network rm "$network"
  [[ -z $address ]] || missing "a published port leads nowhere"
}

answers || command -v dockerd || install docker.io
answers || start_engine
command -v docker-compose || docker compose version || install docker-compose
check_room
work=$(mktemp -d -p /var/tmp)
has "$python" || python_stand_in
has "$redis" || redis_stand_in
check_containers
docker image ls --filter dangling=false --format '{{.Repository}}:{{.Tag}} {{.Size}}' >&3
