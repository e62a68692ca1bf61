package etcd

import (
	"context"
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// A token of before etcd was restored from a backup is not refused: etcd lets calls wait until its log, which began anew, is as long as the one was in which the token
// was given out, and that may take days. So a call that waits has somebody look.
const (
	staleAfter = 2 * time.Second  // lower costs a slow etcd more looks, higher is the time without answers after a restore
	lookEvery  = 10 * time.Second // at most
)

var errStale = errors.New("the token is of a former life of etcd")

// looking is the key of a context whose calls only look: true if they carry no token. Their errors have nobody log in.
type looking struct{}

// isStale reports whether token is what makes calls wait: etcd answers who says nothing (that it won't), and doesn't answer who says it.
func (l *login) isStale(ctx context.Context, cc *grpc.ClientConn, token string) bool {
	now := time.Now()
	l.mu.Lock()
	look := token != "" && l.token == token && l.running == nil && now.Sub(l.looked) >= lookEvery
	if look {
		l.looked = now
	}
	l.mu.Unlock()
	if !look {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, lookEvery)
	defer cancel()
	if !answers(context.WithValue(ctx, looking{}, true), cc) || time.Since(now) > staleAfter {
		return false // it answers nobody, or is busy: a login would make it busier
	}
	ctx, cancel = context.WithTimeout(ctx, staleAfter+4*time.Since(now))
	defer cancel()
	return !answers(context.WithValue(ctx, looking{}, false), cc)
}

// answers reports whether etcd says anything to a read that costs it next to nothing; a refusal is an answer.
func answers(ctx context.Context, cc *grpc.ClientConn) bool {
	_, err := pb.NewKVClient(cc).Range(ctx, &pb.RangeRequest{Key: []byte{0}, Serializable: true, KeysOnly: true})
	return err == nil || ctx.Err() == nil
}
