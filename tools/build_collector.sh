#!/usr/bin/env bash
# Builds the OpenTelemetry collector from Debian's Go source packages, and an image of it under the name that
# compose.yaml gives the official one: a stand-in for tests on machines that reach Debian's packages and no registry of
# images. Needs amd64 or arm64 Debian with apt, and Docker; no root beyond Docker's, and nothing is installed.
#   bash tools/build_collector.sh        # about 400 MB of packages, two minutes of CPU; what it keeps is in out/collector
# SUITE: a suite that has golang-opentelemetry-collector-dev. DEBIAN_MIRROR: where; by default this machine's own mirror.
set -euo pipefail
cd "$(dirname "$0")/.."

image=$(sed -nE 's|^ *image: (otel/opentelemetry-collector:.*)|\1|p' compose.yaml)
label=io.quire.built-from
if docker image inspect "$image" >/dev/null 2>&1 &&
  [ -z "$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$image")" ]; then
  echo "$image is here already, and not from this script: it is left alone." >&2
  exit 0
fi

suite=${SUITE:-sid}
mirror=${DEBIAN_MIRROR:-$(apt-cache policy | sed -nE 's|^ *[0-9]+ (https?://[^ ]+/debian/?) .*|\1|p' | head -1)}
: "${mirror:?no Debian mirror in the apt sources: set DEBIAN_MIRROR}"
source=golang-opentelemetry-collector-dev

# apt with lists, a cache and a state of its own, in which nothing is installed: so everything that is needed comes.
work=$PWD/out/collector
mkdir -p "$work"/{lists,cache/archives}/partial "$work/go/src/quire-collector" "$work/image"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/sources.list"
: >"$work/status"
own=(-o "Dir::Etc::sourcelist=$work/sources.list" -o "Dir::Etc::sourceparts=-" -o "Dir::State::lists=$work/lists"
  -o "Dir::State::status=$work/status" -o "Dir::Cache=$work/cache" -o "APT::Sandbox::User=$(id -un)")
apt-get "${own[@]}" -qq update
apt-get "${own[@]}" -qq -y --no-install-recommends --download-only install golang-go "$source"
apt-get "${own[@]}" -qq autoclean # what an earlier run fetched and the suite has no longer

rm -rf "$work/root"
for package in "$work"/cache/archives/golang-*.deb; do dpkg-deb --extract "$package" "$work/root"; done
version=$(dpkg-deb --field "$work"/cache/archives/"$source"_*.deb Version)

goroot=$(echo "$work"/root/usr/lib/go-1.*)
cp tools/collector/main.go "$work/go/src/quire-collector/"
env GO111MODULE=off CGO_ENABLED=0 GOTOOLCHAIN=local GOROOT="$goroot" GOCACHE="$work/go-cache" \
  GOPATH="$work/go:$work/root/usr/share/gocode" \
  "$goroot/bin/go" build -trimpath -ldflags "-s -w -X main.version=${version%-*}" -o "$work/image/otelcol" quire-collector

docker build --quiet --tag "$image" --label "$label=$source $version" --file - "$work/image" <<'END'
FROM scratch
COPY otelcol /otelcol
USER 10001
ENTRYPOINT ["/otelcol"]
CMD ["--config", "/etc/otelcol/config.yaml"]
EXPOSE 4317
END
echo "$image: $("$work/image/otelcol" --version), of $suite's $source $version"
