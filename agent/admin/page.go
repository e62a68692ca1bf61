package admin

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/table"
)

//go:embed page
var pageFiles embed.FS

// page is the dashboard: files that never change, a stream of what is going on, and one service in detail.
type page struct {
	log      hclog.Logger
	api      API
	table    *table.Table
	events   *event.Log
	now      func() time.Time
	instance string // of this life of the agent

	assets   *assets
	history  *history
	live     *live
	explains chan struct{} // one per explanation that is being made
}

func newPage(cfg *Config) (*page, error) {
	a, err := newAssets()
	if err != nil {
		return nil, err
	}
	p := &page{
		log: cfg.Log, api: cfg.API, table: cfg.Table, events: cfg.Events, now: cfg.Now, instance: strconv.FormatInt(time.Now().UnixNano(), 36),
		assets: a, history: newHistory(cfg.Table, cfg.Proxy), explains: make(chan struct{}, maxExplains),
	}
	p.live = newLive(p)
	return p, nil
}

// run takes samples and serves watchers until ctx ends.
func (p *page) run(ctx context.Context) {
	var running sync.WaitGroup
	running.Go(func() { p.live.run(ctx) })
	p.history.run(ctx, p.now, func() {
		select {
		case p.live.slot <- struct{}{}:
		default:
		}
	})
	running.Wait()
}

func (p *page) route(mux *http.ServeMux) {
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { p.assets.serve(w, r, "index.html") })
	mux.HandleFunc("GET /ui/{file}", func(w http.ResponseWriter, r *http.Request) { p.assets.serve(w, r, r.PathValue("file")) })
	mux.Handle("GET /ui/live", p.live)
	mux.HandleFunc("GET /ui/service", p.service)
}

// assets are the files of the page.
type assets struct {
	version string // of all of them
	files   map[string]asset
}

type asset struct {
	body       []byte
	kind, etag string
}

func newAssets() (*assets, error) {
	a, all := &assets{files: make(map[string]asset)}, sha256.New()
	err := fs.WalkDir(pageFiles, "page", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := pageFiles.ReadFile(name)
		if err != nil {
			return err
		}
		kind := map[string]string{".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}[path.Ext(name)]
		if kind == "" {
			return fmt.Errorf("%s: no content type is known for it", name)
		}
		sum := sha256.Sum256(body)
		all.Write(sum[:])
		a.files[strings.TrimPrefix(name, "page/")] = asset{body, kind + "; charset=utf-8", `"` + hex.EncodeToString(sum[:8]) + `"`}
		return nil
	})
	a.version = hex.EncodeToString(all.Sum(nil)[:8])
	return a, err
}

func (a *assets) serve(w http.ResponseWriter, r *http.Request, name string) {
	f, ok := a.files[name]
	if !ok {
		writeText(w, http.StatusNotFound, "no such page")
		return
	}
	w.Header().Set("Content-Type", f.kind)
	w.Header().Set("Cache-Control", "no-cache") // asked for again each time, answered by 304
	w.Header().Set("ETag", f.etag)
	if r.Header.Get("If-None-Match") == f.etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(f.body)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(f.body) // a reader that went away needs no page
}
