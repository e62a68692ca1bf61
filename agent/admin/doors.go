package admin

import "strconv"

func (c *collector) proxy(m metrics) {
	d, p := c.descs, c.cfg.Proxy()
	m.put(d.clients, float64(p.Clients))
	m.put(d.refused, float64(p.Refused))
	m.put(d.buffered, float64(p.Buffered))
	if p.ClientsLimit > 0 {
		m.put(d.connectionsLimit, float64(p.ClientsLimit))
	}
	if p.BufferedLimit > 0 {
		m.put(d.bufferedLimit, float64(p.BufferedLimit))
	}
	for _, l := range p.Loops {
		name := strconv.Itoa(l.Index)
		m.put(d.loopBusy, l.Busy.Seconds(), name)
		m.put(d.loopWakeups, float64(l.Wakeups), name)
		m.put(d.loopConns, float64(l.Conns), name)
	}
	m.put(d.loopsMissing, float64(p.Missing))
	if p.Missing > 0 {
		return
	}
	for _, s := range p.Services {
		for _, code := range s.Codes {
			m.put(d.requests, float64(code.Count), s.Service, code.Protocol, code.Class)
		}
		for _, l := range s.Latencies {
			m.histogram(d.latency, p.LatencyBounds, l.Histogram, s.Service, l.Protocol)
		}
		for _, l := range s.Overheads {
			m.histogram(d.overhead, p.OverheadBounds, l.Histogram, s.Service, l.Protocol)
		}
		for protocol, n := range s.Sniffed {
			m.put(d.sniffed, float64(n), s.Service, protocol)
		}
		m.put(d.silent, float64(s.Silent), s.Service)
		for protocol, n := range s.Active {
			m.put(d.connections, float64(n), s.Service, protocol)
		}
		for kind, n := range s.Protections {
			m.put(d.protections, float64(n), s.Service, kind)
		}
		m.put(d.backendConns, float64(s.Backends.Open), s.Service)
		m.put(d.backendOpened, float64(s.Backends.Opened), s.Service)
		m.put(d.backendFailed, float64(s.Backends.Failed), s.Service)
		for cause, n := range s.Backends.Closed {
			m.put(d.backendClosed, float64(n), s.Service, cause)
		}
		m.put(d.noBackend, float64(s.NoBackend), s.Service)
		for reason, n := range s.Retried {
			m.put(d.retries, float64(n), s.Service, reason)
		}
		m.put(d.denied, float64(s.Denied), s.Service)
		m.put(d.bytes, float64(s.In), s.Service, "in")
		m.put(d.bytes, float64(s.Out), s.Service, "out")
	}
}

func (c *collector) ask(m metrics) {
	d, a := c.descs, c.cfg.Ask()
	m.put(d.apiConns, float64(a.Connections))
	m.put(d.apiRefused, float64(a.Refused))
	m.put(d.apiPicks, float64(a.Picks))
	m.put(d.apiReports, float64(a.Reports))
	for _, method := range a.Methods {
		m.put(d.apiOpen, float64(method.Open), method.Name)
		for code, n := range method.Ended {
			m.put(d.apiCalls, float64(n), method.Name, code)
		}
	}
}

func (c *collector) accessLog(m metrics) {
	d, s := c.descs, c.cfg.AccessLog()
	if s.On {
		m.put(d.accessOK, boolean(s.OK))
	}
	m.put(d.accessLines, float64(s.Written))
	m.put(d.accessDropped, float64(s.Dropped))
}

func (c *collector) notify(m metrics) {
	d, s := c.descs, c.cfg.Notify()
	if s.On {
		m.put(d.notifyOK, boolean(s.OK))
		m.put(d.notifyWaiting, float64(s.Waiting))
	}
	m.put(d.notifyEvents, float64(s.Sent), "sent")
	m.put(d.notifyEvents, float64(s.Dropped), "dropped")
	m.put(d.notifyPosts, float64(s.Posts), "ok")
	m.put(d.notifyPosts, float64(s.Failures), "failed")
}
