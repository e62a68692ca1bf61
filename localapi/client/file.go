package client

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// line is one backend in a list on disk.
type line struct {
	addr   string
	weight float64 // 0 = only if every other one fails
}

// maxListFile bounds what is read: 10,000 backends take less than 1 MiB.
const maxListFile = 16 << 20

// readList reads what the agent left of service (SEMANTICS 6.6).
func (c *Client) readList(service string) ([]line, error) {
	if strings.ContainsAny(service, "/%") || service == "" {
		return nil, fmt.Errorf("lbagent client: service %q: no such name", service)
	}
	f, err := os.Open(filepath.Join(c.cfg.ListsDir, lbagentv1.ListFile(service)))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxListFile))
	if err != nil {
		return nil, err
	}
	return parseList(text), nil
}

// parseList reads `host:port weight` lines; what it can't read it skips, and fields that a later agent may add it ignores.
func parseList(text []byte) []line {
	var lines []line
	sc := bufio.NewScanner(bytes.NewReader(text))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 2 {
			continue
		}
		weight, err := strconv.ParseFloat(f[1], 64)
		if err != nil || !(weight >= 0) || math.IsInf(weight, 1) {
			continue
		}
		if _, err := netip.ParseAddrPort(f[0]); err != nil {
			continue
		}
		lines = append(lines, line{f[0], weight})
	}
	return lines
}

// fileSource is Provenance.source of what came from disk.
const fileSource = "file"

// fromFile makes an answer of a list on disk, in the form of Watch.
func fromFile(service string, lines []line) *lbagentv1.WatchResponse {
	resp := &lbagentv1.WatchResponse{Service: service, Provenance: &lbagentv1.Provenance{Source: fileSource}}
	only0 := true
	for _, l := range lines {
		only0 = only0 && l.weight == 0
	}
	for _, l := range lines {
		resp.Backends = append(resp.Backends, &lbagentv1.Backend{Address: l.addr, Weight: l.weight, Usable: l.weight > 0 || only0})
	}
	return resp
}
