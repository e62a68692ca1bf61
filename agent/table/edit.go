package table

import "slices"

// edit is the roster of the next view while it is made of the one before.
type edit struct {
	roster

	own   []bool // of each chunk, whether it is of no view yet, and may be written
	dirty []bool // and whether it is to be summed up
}

// edit begins with r as it is.
func (r *roster) edit() *edit {
	return &edit{roster: roster{chunks: slices.Clone(r.chunks), starts: r.starts, sums: r.sums}, own: make([]bool, len(r.chunks)), dirty: make([]bool, len(r.chunks))}
}

// write is the backend at i, to be written.
func (e *edit) write(i int) *Backend {
	k := e.chunkOf(i)
	return &e.writeChunk(k)[i-int(e.starts[k])]
}

// writeChunk is the backends of chunk k, to be written.
func (e *edit) writeChunk(k int) []Backend {
	if !e.own[k] {
		e.chunks[k], e.own[k] = &chunk{backends: slices.Clone(e.chunks[k].backends), sums: e.chunks[k].sums}, true
	}
	e.dirty[k] = true
	return e.chunks[k].backends
}

func (e *edit) add(c *chunk, fresh bool) {
	e.chunks, e.own, e.dirty = append(e.chunks, c), append(e.own, fresh), append(e.dirty, fresh)
}

// keep appends a chunk as it is.
func (e *edit) keep(c *chunk) {
	e.add(c, false)
}

// put appends backends, which are the edit's from now on: in a chunk of their own, in several if they are too many, or in the last one if there is room.
func (e *edit) put(backends []Backend) {
	n := len(backends)
	if n == 0 {
		return
	}
	if last := len(e.chunks) - 1; last >= 0 && len(e.chunks[last].backends)+n <= chunkMost {
		e.chunks[last], e.own[last], e.dirty[last] = &chunk{backends: slices.Concat(e.chunks[last].backends, backends)}, true, true
		return
	}
	if n <= chunkMost {
		e.add(&chunk{backends: backends}, true)
		return
	}
	parts := (n + chunkMost - 1) / chunkMost
	for i := range parts {
		// Each is by itself: one that stays would keep the others.
		e.add(&chunk{backends: slices.Clone(backends[i*n/parts : (i+1)*n/parts])}, true)
	}
}

// seal sums up what was written.
func (e *edit) seal() {
	e.starts, e.groups, e.sums = make([]int32, len(e.chunks)), nil, sums{}
	for k, c := range e.chunks {
		if e.dirty[k] {
			c.sum()
			e.dirty[k] = false
		}
		e.starts[k] = int32(e.sums.backends)
		e.sums.backends += c.sums.backends
		e.sums.usable += c.sums.usable
		e.sums.slow += c.sums.slow
		for i := range c.groups {
			var g *group
			e.groups, g = groupOf(e.groups, c.groups[i].place)
			g.add(&c.groups[i])
		}
	}
}
