#!/bin/sh
# Builds dist/*.deb and dist/*.rpm: VERSION and ARCHES say what, DIST where; GO, LDFLAGS and NFPM how. `make package` calls it. It needs Go; git is optional.
set -eu
cd "$(dirname "$0")/.."

: "${GO:=go}"
: "${VERSION:=$(git describe --tags --match 'v*' 2>/dev/null || echo v0.1.0-dev)}"
: "${ARCHES:=amd64 arm64}"
: "${DIST:=dist}"
: "${LDFLAGS:=-s -w -X main.version=$VERSION}"
: "${NFPM:=$GO tool -modfile=tools.mod nfpm}"
# The same sources make the same bytes.
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || date +%s)}"
export VERSION DIST SOURCE_DATE_EPOCH

rm -f "$DIST"/lbagent[_-]*.deb "$DIST"/lbagent-*.rpm
mkdir -p "$DIST/completion"
gzip -9nc CHANGELOG.md >"$DIST/CHANGELOG.md.gz"
gzip -9nc packaging/man/lbagent.8 >"$DIST/lbagent.8.gz"
gzip -9nc packaging/man/lbagent.yaml.5 >"$DIST/lbagent.yaml.5.gz"
gzip -9nc >"$DIST/changelog.Debian.gz" <<END
lbagent ($(echo "${VERSION#v}" | sed 's/-/~/')) unstable; urgency=medium

  * See /usr/share/doc/lbagent/changelog.gz.

 -- The lbagent authors <lbagent@users.noreply.github.com>  $(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")
END
for ARCH in $ARCHES; do
	echo "== lbagent $VERSION for $ARCH"
	CGO_ENABLED=0 GOOS=linux GOARCH=$ARCH $GO build -trimpath -ldflags "$LDFLAGS" -o "$DIST/$ARCH/lbagent" ./cmd/lbagent
done
# The completions are the same everywhere; a program of this machine makes them.
here=$DIST/$($GO env GOHOSTARCH)/lbagent
[ -x "$here" ] || CGO_ENABLED=0 $GO build -o "$here" ./cmd/lbagent
for shell in bash zsh fish; do
	"$here" completion "$shell" >"$DIST/completion/$shell"
done
for ARCH in $ARCHES; do
	export ARCH
	for packager in deb rpm; do
		$NFPM package --config packaging/nfpm.yaml --packager "$packager" --target "$DIST/"
	done
done
