package localapi

import (
	"context"
	"net/http"
	"net/http/pprof"
	"strings"

	"google.golang.org/grpc/codes"
)

const pprofPath = "/debug/pprof"

// wantsProfiles reports whether r asks for what Go tells of its own process.
func wantsProfiles(r *http.Request) bool {
	return r.URL.Path == pprofPath || strings.HasPrefix(r.URL.Path, pprofPath+"/")
}

// mayProfile says whether c is an administrator's, on the admin socket. On the open socket there are no profiles: a CPU profile costs, and each names what the agent is busy with.
func mayProfile(c *conn) bool { return c != nil && c.peer.Socket && c.peer.Admin }

// profiles serves Go's profiles to administrators on the admin socket, as `curl --unix-socket ADMIN http://lbagent/debug/pprof/heap` gets them (DESIGN.md 6). On the open socket
// the path is one that nobody knows.
func (s *Server) profiles(next http.Handler) http.Handler {
	mux := http.NewServeMux()
	for path, h := range map[string]http.HandlerFunc{"/": pprof.Index, "/cmdline": pprof.Cmdline, "/profile": pprof.Profile, "/symbol": pprof.Symbol, "/trace": pprof.Trace} {
		mux.HandleFunc("GET "+pprofPath+path, h)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := connOf(r.Context())
		switch {
		case !wantsProfiles(r) || c == nil || !c.peer.Socket:
			next.ServeHTTP(w, r)
		case !mayProfile(c):
			writeError(r.Context(), nil, jsonMarshaler(), w, r, failure(codes.PermissionDenied, reasonForbidden, "",
				"profiles are for root, the agent's user and the agent's group; the caller has uid %d, gid %d", c.peer.UID, c.peer.GID))
		default:
			mux.ServeHTTP(w, r)
		}
	})
}

// connOf is the connection that a request of the JSON face came by; nil if it is unknown.
func connOf(ctx context.Context) *conn {
	c, _ := ctx.Value(httpConnKey{}).(*conn)
	return c
}
