package event

import "maps"

// Last is the ID of the last event, 0 if there was none.
func (l *Log) Last() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// End is the ID of the last event, and the N of the last that is no connection; 0 if there was none.
func (l *Log) End() (id, n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last, l.all.added
}

// Counts is how many events of each kind there were since the start.
func (l *Log) Counts() map[Kind]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.kinds)
}
