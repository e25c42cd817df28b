#!/usr/bin/env bash
# Builds a control plane of Kubernetes from Debian's source package, for tests/kubernetes/test_control_plane.py on machines
# that reach Debian's packages and nothing else: etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kubectl
# into out/kubernetes/bin. It is 1.20.2, of bookworm: later source packages of Debian have kubectl alone.
# Needs amd64 or arm64 Debian with apt; nothing is installed.
#   bash tools/build_kubernetes.sh       # 140 MB of packages, ten minutes of CPU, 3 GB of disk until it is done
# DEBIAN_MIRROR: where bookworm is; by default this machine's own mirror.
set -euo pipefail
cd "$(dirname "$0")/.."

programs=(kube-apiserver kube-controller-manager kube-scheduler kubectl)
work=$PWD/out/kubernetes
if [ -x "$work/bin/kubectl" ]; then
  echo "$work/bin is there already: $("$work/bin/kube-apiserver" --version). Remove it to build it again."
  exit 0
fi

mirror=${DEBIAN_MIRROR:-$(apt-cache policy | sed -nE 's|^ *[0-9]+ (https?://[^ ]+/debian/?) .*|\1|p' | head -1)}
: "${mirror:?no Debian mirror in the apt sources: set DEBIAN_MIRROR}"

# apt with lists, a cache and a state of its own, in which nothing is installed: so everything that is needed comes.
mkdir -p "$work"/{lists,cache/archives}/partial "$work/home"
for kind in deb deb-src; do
  echo "$kind [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm main"
done >"$work/sources.list"
: >"$work/status"
own=(-o "Dir::Etc::sourcelist=$work/sources.list" -o "Dir::Etc::sourceparts=-" -o "Dir::State::lists=$work/lists"
  -o "Dir::State::status=$work/status" -o "Dir::Cache=$work/cache" -o "APT::Sandbox::User=$(id -un)")
apt-get "${own[@]}" -qq update
apt-get "${own[@]}" -qq -y --no-install-recommends --download-only install etcd-server golang-go jq make rsync
(cd "$work/cache" && apt-get "${own[@]}" -qq --download-only source kubernetes)

rm -rf "$work/root" "$work/source"
mkdir -p "$work/source"
for name in etcd-server golang jq libjq1 libonig5 libpopt0 libxxhash0 make rsync; do
  for package in "$work/cache/archives/$name"[_-]*.deb; do dpkg-deb --extract "$package" "$work/root"; done
done
# Debian's patches are of what kubectl prints of strings from others: not wanted for tests.
tar --extract --strip-components=1 --directory "$work/source" --file "$work"/cache/kubernetes_*.orig.tar.gz

goroot=$(echo "$work"/root/usr/lib/go-1.*)
mkdir -p "$work/source/.go/src/k8s.io"
ln -s ../../.. "$work/source/.go/src/k8s.io/kubernetes"
env HOME="$work/home" GOROOT="$goroot" GOPATH="$work/source/.go" GOTOOLCHAIN=local CGO_ENABLED=0 \
  PATH="$goroot/bin:$work/root/usr/bin:$PATH" LD_LIBRARY_PATH="$(echo "$work"/root/usr/lib/*-linux-gnu*)" \
  make --directory "$work/source" WHAT="${programs[*]/#/cmd/}"

mkdir -p "$work/bin"
cp "$work/root/usr/bin/etcd" "$work/bin/"
for program in "${programs[@]}"; do cp "$work/source/_output/bin/$program" "$work/bin/"; done
chmod -R u+w "$work/source" && rm -rf "$work/root" "$work/source" "$work/home"
echo "$work/bin: $("$work/bin/kube-apiserver" --version), $("$work/bin/etcd" --version | head -1)"
