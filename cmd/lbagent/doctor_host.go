package main

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/lbagent/lbagent/agent/config"
)

// checkNode looks at the name by which mutes and canaries know this host.
func (d *doctor) checkNode() {
	const check = "node"
	switch name := d.c.Node.Name; name {
	case "localhost", "localhost.localdomain", "debian", "ubuntu":
		d.warn(check, fmt.Sprintf("node.name is %s, as on other hosts: mutes and only: {node: ...} can't tell them apart", name), "set the hostname, or node.name")
	default:
		d.ok(check, "%s", name)
	}
}

// wanted is an address that the configuration makes the agent listen at.
type wanted struct {
	who  string
	addr netip.AddrPort
}

func wantedPorts(c *config.Config) []wanted {
	var all []wanted
	for _, s := range c.Services {
		for _, l := range s.Listen {
			if l.TCP.IsValid() {
				all = append(all, wanted{"service " + s.Name, l.TCP})
			}
		}
	}
	for who, listen := range map[string]string{"admin.listen": c.AdminListen, "metrics.listen": c.MetricsAddr, "api.listen": c.API.Listen} {
		if strings.HasPrefix(listen, ":") {
			listen = "[::]" + listen
		}
		if addr, err := netip.ParseAddrPort(listen); err == nil { // else it is off
			all = append(all, wanted{who, addr})
		}
	}
	slices.SortStableFunc(all, func(a, b wanted) int { return a.addr.Compare(b.addr) })
	return all
}

// checkPorts finds ports of the configuration that somebody else has, or that nobody has although the agent runs.
func (d *doctor) checkPorts() {
	const check = "ports"
	before, all := len(d.findings), wantedPorts(d.c)
	listening := d.listening()
	owners := d.owners(listening)
	said := make(map[string]bool)
	for _, w := range all {
		what, mend := d.portTrouble(w, listening, owners)
		if what == "" || said[what] {
			continue
		}
		said[what] = true
		d.bad(check, what, mend)
	}
	low, high := d.portRange()
	for _, w := range all {
		port := int(w.addr.Port())
		text := fmt.Sprintf("port %d (%s) is one that the kernel takes for outgoing connections (%d to %d): while the agent is down it can go to somebody else", port, w.who, low, high)
		if port >= low && port <= high && !said[text] && !d.reserved(port) {
			said[text] = true
			d.warn(check, text, fmt.Sprintf("another port, or sysctl -w net.ipv4.ip_local_reserved_ports=%d", port))
		}
	}
	d.well(before, check, "%s, none of them taken by others", plural(len(all), "listener"))
}

func (d *doctor) portTrouble(w wanted, listening []listener, owners map[string][]process) (what, mend string) {
	var there []process
	found, anywhere := false, false
	for _, l := range listening {
		anywhere = anywhere || l.addr.Port() == w.addr.Port() // a bare port means [::1], too, where there is IPv6
		if !overlap(w.addr, l.addr) {
			continue
		}
		found = true
		there = append(there, owners[l.inode]...)
	}
	pid, runs := d.agentPID(), d.agent != nil
	listed := d.lists(w.addr)
	place := fmt.Sprintf("port %d (%s)", w.addr.Port(), w.who)
	switch {
	case !anywhere && runs && w.addr.Port() < 1024 && strings.HasPrefix(w.who, "service ") && d.agent.GetReady():
		return "nobody listens at " + place + ", although an agent runs", "a port below 1024 takes a drop-in: /usr/share/doc/lbagent/examples/low-ports.conf says how"
	case !anywhere && runs && strings.HasPrefix(w.who, "service ") && d.agent.GetReady():
		return "nobody listens at " + place + ", although an agent runs", "lbagent reload makes it read the configuration; lbagent status says what it refuses"
	case !found:
		return "", ""
	case slices.ContainsFunc(there, func(p process) bool { return p.pid == 1 || p.pid == pid }): // 1: systemd keeps sockets for the agent
		return "", ""
	case len(there) == 0 && runs && (listed || !strings.HasPrefix(w.who, "service ")):
		return "", "" // whose it is can't be seen, and the agent says that it is its
	case len(there) == 0:
		return place + " is taken by another program", "run doctor as root to see by which; stop that, or write another port"
	}
	return fmt.Sprintf("%s is taken by %s (pid %d)", place, there[0].name, there[0].pid), "stop that program, or write another port"
}

// lists says whether the agent says that it listens at addr.
func (d *doctor) lists(addr netip.AddrPort) bool {
	for _, s := range d.agent.GetServices() {
		if slices.Contains(s.GetListeners(), addr.String()) {
			return true
		}
	}
	return false
}

// overlap reports whether two sockets can't both listen.
func overlap(a, b netip.AddrPort) bool {
	wild := func(a, b netip.Addr) bool { return a.IsUnspecified() && (a.Is6() || b.Is4()) } // [::] takes IPv4 too
	return a.Port() == b.Port() && (a.Addr() == b.Addr() || wild(a.Addr(), b.Addr()) || wild(b.Addr(), a.Addr()))
}

// listener is a row of /proc/net/tcp or tcp6.
type listener struct {
	addr  netip.AddrPort
	inode string
}

func (d *doctor) listening() []listener {
	var all []listener
	for _, name := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(filepath.Join(d.proc, "net", name))
		if err == nil {
			all = append(all, parseListening(string(text))...)
		}
	}
	return all
}

// parseListening reads the format of proc_net_tcp(5): addresses are words of 32 bits in the host's order, which on amd64 and arm64 is little-endian.
func parseListening(text string) []listener {
	const listenState = "0A"
	var all []listener
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 10 || f[3] != listenState {
			continue
		}
		host, port, _ := strings.Cut(f[1], ":")
		raw, err := hex.DecodeString(host)
		n, portErr := strconv.ParseUint(port, 16, 16)
		if err != nil || portErr != nil || len(raw)%4 != 0 {
			continue
		}
		for i := 0; i < len(raw); i += 4 {
			binary.BigEndian.PutUint32(raw[i:], binary.LittleEndian.Uint32(raw[i:]))
		}
		if ip, ok := netip.AddrFromSlice(raw); ok {
			all = append(all, listener{netip.AddrPortFrom(ip.Unmap(), uint16(n)), f[9]})
		}
	}
	return all
}

// process is who holds a socket.
type process struct {
	pid  int
	name string
}

// owners are the processes that have the sockets open, as far as this user may see them.
func (d *doctor) owners(sockets []listener) map[string][]process {
	wanted := make(map[string]string, len(sockets))
	for _, l := range sockets {
		wanted["socket:["+l.inode+"]"] = l.inode
	}
	all := make(map[string][]process)
	dirs, _ := os.ReadDir(d.proc)
	for _, dir := range dirs {
		pid, err := strconv.Atoi(dir.Name())
		if err != nil {
			continue
		}
		fds := filepath.Join(d.proc, dir.Name(), "fd")
		open, _ := os.ReadDir(fds) // of others only for root
		for _, fd := range open {
			to, err := os.Readlink(filepath.Join(fds, fd.Name()))
			if inode, ok := wanted[to]; ok && err == nil {
				all[inode] = append(all[inode], process{pid, d.comm(pid)})
			}
		}
	}
	return all
}

func (d *doctor) comm(pid int) string {
	text, err := os.ReadFile(filepath.Join(d.proc, strconv.Itoa(pid), "comm"))
	if err != nil {
		return "a program"
	}
	return strings.TrimSpace(string(text))
}

// agentPID is the running agent's; 0 if none runs, or in a container, where its number is another one.
func (d *doctor) agentPID() int {
	if pid := int(d.agent.GetPid()); pid > 0 && strings.HasPrefix(d.comm(pid), "lbagent") {
		return pid
	}
	return 0
}

// checkDescriptors compares what the agent may open with what it is told to take (limits.connections).
func (d *doctor) checkDescriptors() {
	const (
		check = "open files"
		own   = 256 // the proxy leaves them to etcd, probes, the API and backends
	)
	pid := d.agentPID()
	text, err := os.ReadFile(filepath.Join(d.proc, strconv.Itoa(pid), "limits"))
	if pid == 0 || err != nil {
		return // it is the agent's limit that counts
	}
	most := openFiles(string(text))
	if most < 0 {
		return
	}
	mend := "LimitNOFILE= in a drop-in of the unit (systemctl edit lbagent), or a lower limits.connections"
	if need := 2*d.c.Limits.Connections + own; most < need {
		d.warn(check, fmt.Sprintf("the agent may open %d files; limits.connections of %d can take %d, two for each TCP connection", most, d.c.Limits.Connections, need), mend)
		return
	}
	if open, err := os.ReadDir(filepath.Join(d.proc, strconv.Itoa(pid), "fd")); err == nil && len(open) > most/5*4 {
		d.warn(check, fmt.Sprintf("%d of %d are open", len(open), most), mend)
		return
	}
	d.ok(check, "the agent may open %d", most)
}

// openFiles is the soft limit in /proc/PID/limits; -1 if it has none that can be read.
func openFiles(limits string) int {
	for line := range strings.Lines(limits) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				if n, err := strconv.Atoi(f[0]); err == nil {
					return n
				}
			}
		}
	}
	return -1
}

// checkKernel looks at settings that bound what goes through the proxy.
func (d *doctor) checkKernel() {
	const check = "kernel"
	before := len(d.findings)
	if n, ok := d.sysctl("net/core/somaxconn"); ok && n[0] < 1024 {
		d.warn(check, fmt.Sprintf("net.core.somaxconn is %d: of more clients that connect at once some wait a second or longer", n[0]), "sysctl -w net.core.somaxconn=4096")
	}
	if low, high := d.portRange(); high > 0 && high-low < 10_000 {
		d.warn(check, fmt.Sprintf("net.ipv4.ip_local_port_range is %d to %d: so few connections can go to one backend at once", low, high), `sysctl -w net.ipv4.ip_local_port_range="32768 60999"`)
	}
	if n, ok := d.sysctl("fs/file-max"); ok && d.c != nil && n[0] < 4*d.c.Limits.Connections {
		d.warn(check, fmt.Sprintf("fs.file-max is %d, for all programs of this host; limits.connections is %d", n[0], d.c.Limits.Connections), fmt.Sprintf("sysctl -w fs.file-max=%d", 100*d.c.Limits.Connections))
	}
	d.well(before, check, "backlog, ports for outgoing connections and open files are enough")
}

func (d *doctor) portRange() (low, high int) {
	if n, ok := d.sysctl("net/ipv4/ip_local_port_range"); ok && len(n) == 2 {
		return n[0], n[1]
	}
	return 0, 0
}

// reserved reports whether the kernel leaves a port alone: 8080,9000-9010.
func (d *doctor) reserved(port int) bool {
	text, _ := os.ReadFile(filepath.Join(d.proc, "sys/net/ipv4/ip_local_reserved_ports"))
	for one := range strings.SplitSeq(strings.TrimSpace(string(text)), ",") {
		from, to, isRange := strings.Cut(one, "-")
		if !isRange {
			to = from
		}
		low, err := strconv.Atoi(from)
		high, err2 := strconv.Atoi(to)
		if err == nil && err2 == nil && low <= port && port <= high {
			return true
		}
	}
	return false
}

// sysctl reads the numbers of one setting.
func (d *doctor) sysctl(name string) (numbers []int, ok bool) {
	f, err := os.Open(filepath.Join(d.proc, "sys", name))
	if err != nil {
		return nil, false
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Split(bufio.ScanWords)
	for s.Scan() {
		n, err := strconv.Atoi(s.Text())
		if err != nil {
			return nil, false // larger than an int: enough
		}
		numbers = append(numbers, n)
	}
	return numbers, len(numbers) > 0
}
