package main

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// reconnectEvery is how often a verb that follows something looks for an agent that has gone.
const reconnectEvery = 250 * time.Millisecond

// errAway says that the agent ended a stream, or went away in the midst of it.
var errAway = errors.New("the agent went away")

// lasting keeps a stream over restarts of the agent: it calls connect, which connects and reads until the stream ends, again and again. It returns when ctx has ended,
// when connect is done, or when something else is wrong than the agent's absence; that the agent isn't there in the beginning, too, is an error. gone is called
// once each time that it has gone.
func (a *app) lasting(ctx context.Context, connect func(met func()) error, gone func()) error {
	a.lasts = true
	there, ever := false, false
	for {
		err := connect(func() { there, ever = true, true })
		_, absent := errors.AsType[*absentError](err)
		switch {
		case ctx.Err() != nil:
			return nil // somebody wanted the end
		case !ever && errors.Is(err, errAway):
			return errors.New("the agent ended the stream at once")
		case !ever, !absent && !errors.Is(err, errAway):
			return err
		case there:
			there = false
			gone()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(reconnectEvery):
		}
	}
}

// away makes an end of a stream that the agent's end explains errAway.
func away(err error) error {
	if errors.Is(err, io.EOF) || status.Code(err) == codes.Unavailable {
		return errAway
	}
	return err
}
