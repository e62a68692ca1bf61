package proxy

import "iter"

// waiters are the calls that wait for a stream of one backend: first come, first served among those of one client connection, and turn by turn between
// clients, so that one with hundreds of calls doesn't hold up the others (4.4).
type waiters struct {
	lanes []*lane // those with calls, in the order of their turns
	n     int
	free  *lane // one is kept: waiting is the exception
}

// lane holds the calls of one client connection.
type lane struct {
	client     *clientConn
	head, tail *call
	n          int
}

// of returns the lane of a client, nil if it has no call waiting.
func (q *waiters) of(client *clientConn) *lane {
	for _, l := range q.lanes {
		if l.client == client {
			return l
		}
	}
	return nil
}

func (q *waiters) push(c *call) {
	l := q.of(c.client)
	if l == nil {
		l = q.free
		if l == nil {
			l = &lane{}
		}
		q.free = nil
		l.client = c.client
		q.lanes = append(q.lanes, l)
	}
	if l.tail == nil {
		l.head = c
	} else {
		l.tail.next, c.prev = c, l.tail
	}
	l.tail = c
	c.lane = l
	l.n++
	q.n++
}

// next is the call whose turn it is, nil if none waits.
func (q *waiters) next() *call {
	if len(q.lanes) == 0 {
		return nil
	}
	return q.lanes[0].head
}

// remove takes c out. The turn goes on to the next client if it was c's.
func (q *waiters) remove(c *call) {
	l := c.lane
	turn := q.lanes[0] == l && l.head == c
	if c.prev == nil {
		l.head = c.next
	} else {
		c.prev.next = c.next
	}
	if c.next == nil {
		l.tail = c.prev
	} else {
		c.next.prev = c.prev
	}
	c.next, c.prev, c.lane = nil, nil, nil
	l.n--
	q.n--
	switch {
	case l.n == 0:
		q.drop(l)
	case turn && len(q.lanes) > 1:
		copy(q.lanes, q.lanes[1:])
		q.lanes[len(q.lanes)-1] = l
	}
}

func (q *waiters) drop(l *lane) {
	for i, o := range q.lanes {
		if o == l {
			copy(q.lanes[i:], q.lanes[i+1:])
			q.lanes[len(q.lanes)-1] = nil
			q.lanes = q.lanes[:len(q.lanes)-1]
			break
		}
	}
	*l = lane{}
	q.free = l
	if len(q.lanes) == 0 && cap(q.lanes) > 64 {
		q.lanes = nil
	}
}

// displaced is the call that makes room in a full queue for one of client: the last one of who has most there, if that is more than client would have.
func (q *waiters) displaced(client *clientConn) *call {
	var most *lane
	for _, l := range q.lanes {
		if most == nil || l.n > most.n {
			most = l
		}
	}
	mine := 1
	if l := q.of(client); l != nil {
		mine += l.n
	}
	if most == nil || most.n <= mine {
		return nil
	}
	return most.tail
}

// all walks over the calls, client by client; none may be taken out meanwhile.
func (q *waiters) all() iter.Seq[*call] {
	return func(yield func(*call) bool) {
		for _, l := range q.lanes {
			for c := l.head; c != nil; c = c.next {
				if !yield(c) {
					return
				}
			}
		}
	}
}
