package proxy

import "time"

// upload sends the request's body, and then watches the client for leaving. from is what an earlier attempt has sent already.
func (x *exchange) upload(conn *http1Backend) {
	kept := x.replay.kept
	x.up = make(chan error, 1)
	up := x.up
	go func() {
		err := x.sendBody(conn, kept)
		if err == nil {
			x.ended.Store(true)
			x.watchClient()
		}
		up <- err
	}()
}

// sendBody copies the body to a backend.
func (x *exchange) sendBody(conn *http1Backend, kept []byte) error {
	if len(kept) > 0 {
		if _, err := conn.Write(kept); err != nil {
			return &sendError{err}
		}
	}
	if x.ended.Load() { // what is kept is all of it
		return nil
	}
	buf := x.s.h.large.Get().(*http1Buffer)
	defer x.s.h.large.Put(buf)
	for {
		out, last, err := x.body.appendBody(buf[:0], x.body.chunked)
		if len(out) > 0 {
			x.replay.sent(out)
			if _, err := conn.Write(out); err != nil {
				return &sendError{err} // not the request's end: an answer may be there
			}
		}
		if err != nil {
			x.clientFailed(err)
			return err
		}
		if last {
			return nil
		}
	}
}

// sendError is a failed write to a backend.
type sendError struct{ err error }

func (e *sendError) Error() string { return e.err.Error() }
func (e *sendError) Unwrap() error { return e.err }

// clientFailed ends the request because its body can't be read; not if that was stopped from here.
func (x *exchange) clientFailed(err error) {
	x.mu.Lock()
	stopping := x.stopping
	x.mu.Unlock()
	if stopping {
		return
	}
	if status, _ := statusOf(err); status == 0 {
		err = errClientGone
	}
	x.cancel(err)
}

// watchClient ends the request when the client leaves, until it is stopped.
func (x *exchange) watchClient() {
	x.mu.Lock()
	if !x.stopping {
		x.c.readUntil = time.Time{}
		x.c.SetReadDeadline(time.Time{})
	}
	x.mu.Unlock()
	if x.c.gone() {
		x.cancel(errClientGone)
	}
}

// watchSoon begins the watch after a while, for a request without a body to upload.
func (x *exchange) watchSoon() {
	c := x.c
	c.watched = x
	if c.watch == nil {
		c.seen = make(chan error, 1)
		c.watch = time.AfterFunc(watchAfter, func() {
			c.watched.watchClient()
			c.seen <- nil
		})
	} else {
		c.watch.Reset(watchAfter)
	}
	x.up, x.watch = c.seen, c.watch
}

// stopUpload ends upload or watch, and reports whether the whole request has been read and sent. Afterwards nobody else uses the client's connection.
func (x *exchange) stopUpload() bool {
	if x.up == nil || x.watch != nil && x.watch.Stop() {
		x.up, x.watch, x.c.watched = nil, nil, nil
		return x.ended.Load()
	}
	x.mu.Lock()
	x.stopping = true
	x.c.SetReadDeadline(past())
	if x.conn != nil && !x.ended.Load() {
		x.conn.SetWriteDeadline(past())
	}
	x.mu.Unlock()
	err := <-x.up
	x.up, x.watch, x.c.watched = nil, nil, nil
	x.mu.Lock()
	defer x.mu.Unlock()
	x.stopping = false
	x.c.readUntil = time.Time{}
	x.c.SetReadDeadline(time.Time{})
	whole := err == nil && x.ended.Load()
	if whole && x.conn != nil && x.cause == nil {
		x.conn.SetWriteDeadline(time.Time{}) // it ended just then
	}
	return whole
}
