package registrar

import "time"

// Held is a held registration: it lasts until Release.
type Held struct {
	r  *Registrar
	id id

	ended chan struct{} // closed when another took its place
	why   error
}

// end tells the holder, with the registrar's lock held, that it is none any more.
func (h *Held) end(why error) {
	h.why = why
	close(h.ended)
}

// Ended is closed when somebody else took the registration over; Err says who.
func (h *Held) Ended() <-chan struct{} { return h.ended }

// Err says why it ended.
func (h *Held) Err() error { return h.why }

// Release ends the registration, unless it has passed to another, or to another process: there it waits for its holder.
func (h *Held) Release() {
	r := h.r
	r.mu.Lock()
	if e := r.entries[h.id]; e != nil && e.holder == h && !r.handedOn {
		r.dropLocked(time.Now(), e, "its holder has gone")
	}
	r.mu.Unlock()
	r.save()
}

// Status is what is known of it now, and a channel that is closed when that may have changed.
func (h *Held) Status() (Status, <-chan struct{}) { return h.r.one(h.id) }
