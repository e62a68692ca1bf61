package admin

import (
	"net"
	"sync"
	"sync/atomic"
)

// limit returns a listener that closes what it accepts beyond n open connections: a refused scraper tries again, a queue of them would only grow.
func limit(l net.Listener, n int64) net.Listener { return &limited{Listener: l, max: n} }

type limited struct {
	net.Listener
	max int64

	open atomic.Int64
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.max {
			return &limitedConn{Conn: c, freed: sync.OnceFunc(func() { l.open.Add(-1) })}, nil
		}
		l.open.Add(-1)
		c.Close()
	}
}

type limitedConn struct {
	net.Conn
	freed func()
}

func (c *limitedConn) Close() error {
	defer c.freed()
	return c.Conn.Close()
}
