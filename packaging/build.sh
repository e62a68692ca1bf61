#!/bin/sh
# Builds dist/*.deb and dist/*.rpm, with SHA256SUMS and a bill of materials for each architecture: VERSION and ARCHES say what, DIST where; GO, LDFLAGS and NFPM
# how. `make package` calls it. It needs Go; git is optional. The same sources give the same bytes, wherever and whenever they are built.
set -eu
cd "$(dirname "$0")/.."

: "${GO:=go}"
: "${VERSION:=$(git describe --tags --match 'v*' 2>/dev/null || echo v0.1.0-dev)}"
: "${ARCHES:=amd64 arm64}"
: "${DIST:=dist}"
: "${LDFLAGS:=-s -w -X main.version=$VERSION}"
: "${NFPM:=$GO tool -modfile=tools.mod nfpm}"
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || date +%s)}"
FILE_VERSION=${VERSION#v}
export GO VERSION FILE_VERSION DIST SOURCE_DATE_EPOCH
umask 022
LC_ALL=C
export LC_ALL
CGO_ENABLED=0 # the agent's, and its tools' too: what they share is compiled once
export CGO_ENABLED

rm -rf "$DIST"/lbagent[_-]*.deb "$DIST"/lbagent-*.rpm "$DIST"/lbagent_*.cdx.json "$DIST/SHA256SUMS" "$DIST/man"
mkdir -p "$DIST/completion" "$DIST/man"
gzip -9nc CHANGELOG.md >"$DIST/CHANGELOG.md.gz"
gzip -9nc packaging/man/lbagent.8 >"$DIST/man/lbagent.8.gz"
gzip -9nc packaging/man/lbagent.yaml.5 >"$DIST/lbagent.yaml.5.gz"
gzip -9nc >"$DIST/changelog.Debian.gz" <<END
lbagent ($(echo "${VERSION#v}" | sed 's/-/~/')) unstable; urgency=medium

  * See /usr/share/doc/lbagent/changelog.gz.

 -- The lbagent authors <lbagent@users.noreply.github.com>  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
END
for ARCH in $ARCHES; do
	echo "== lbagent $VERSION for $ARCH"
	GOOS=linux GOARCH=$ARCH $GO build -trimpath -buildvcs=false -ldflags "$LDFLAGS" -o "$DIST/$ARCH/lbagent" ./cmd/lbagent
	$GO run ./packaging/inventory "$DIST/$ARCH/lbagent" sbom >"$DIST/lbagent_${FILE_VERSION}_$ARCH.cdx.json"
	$GO run ./packaging/inventory "$DIST/$ARCH/lbagent" licences | gzip -9nc >"$DIST/$ARCH/licences.gz"
done
# Completions and manual pages are the same everywhere; a program of this machine makes them.
here=$DIST/$($GO env GOHOSTARCH)/lbagent
[ -x "$here" ] || $GO build -o "$here" ./cmd/lbagent
for shell in bash zsh fish; do
	"$here" completion "$shell" >"$DIST/completion/$shell"
done
"$here" manual | while read -r page verb; do
	# shellcheck disable=SC2086 # a verb may be of two words
	"$here" manual $verb | gzip -9nc >"$DIST/man/$page.8.gz"
done
cp packaging/nfpm.yaml "$DIST/nfpm.yaml"
for page in "$DIST"/man/*.gz; do
	cat >>"$DIST/nfpm.yaml" <<END
  - {src: "$page", dst: "/usr/share/man/man8/${page##*/}", packager: deb, file_info: {mode: 0644}}
  - {src: "$page", dst: "/usr/share/man/man8/${page##*/}", packager: rpm, type: doc, file_info: {mode: 0644}}
END
done
for guide in packaging/doc/*.md; do
	cat >>"$DIST/nfpm.yaml" <<END
  - {src: "$guide", dst: "/usr/share/doc/lbagent/${guide##*/}", packager: deb, file_info: {mode: 0644}}
  - {src: "$guide", dst: "/usr/share/doc/lbagent/${guide##*/}", packager: rpm, type: doc, file_info: {mode: 0644}}
END
done
# Beside the examples lies the API that they ask by: that is the tree which they are built in.
for example in README.md echo.proto lbagent/v1/lookup.proto python/client.py node/client.js node/package.json cpp/Makefile cpp/client.cc shell/client.sh; do
	cat >>"$DIST/nfpm.yaml" <<END
  - {src: "packaging/examples/$example", dst: "/usr/share/doc/lbagent/examples/$example", packager: deb, file_info: {mode: 0644}}
  - {src: "packaging/examples/$example", dst: "/usr/share/doc/lbagent/examples/$example", packager: rpm, type: doc, file_info: {mode: 0644}}
END
done
for ARCH in $ARCHES; do
	export ARCH
	for packager in deb rpm; do
		$NFPM package --config "$DIST/nfpm.yaml" --packager "$packager" --target "$DIST/"
	done
done
(cd "$DIST" && sha256sum lbagent[_-]*.deb lbagent-*.rpm lbagent_*.cdx.json >SHA256SUMS)
