package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// browserVariable lets TestBrowser run: it needs Chromium and node. `make browser` sets it.
const browserVariable = "LBAGENT_BROWSER"

// TestBrowser reads the page of the built agent in a real Chromium.
func TestBrowser(t *testing.T) {
	if os.Getenv(browserVariable) != "1" {
		t.Skipf("run by make browser, which sets %s=1", browserVariable)
	}
	b := newBrowser(t)
	t.Run("a night", func(t *testing.T) { browseNight(t, b) })
	t.Run("hostile names", func(t *testing.T) { browseHostile(t, b) })
	t.Run("a large host", func(t *testing.T) { browseLarge(t, b) })
}

// browseNight is what a person sees of a host whose parts fail one after another.
func browseNight(t *testing.T, b *browser) {
	own, err := etcdtest.Run(etcdtest.Config{Dir: filepath.Join(t.TempDir(), "etcd")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { own.Close() })
	bs := backends(t, 3, work)
	cart := newBackend(t, "cart", "127.0.0.1", work)
	edit := etcdClient(t, own.Endpoints()...)
	register(t, edit, "user", addrs(bs)...)
	register(t, edit, "cart", cart.addr)
	port := freePort(t)
	a := startAgent(t, fmt.Sprintf("- {name: user, prefix: services/user/, listen: [%d]}\n- {name: cart, prefix: services/cart/, probe: {type: tcp, interval: 1s, fall: 2}}", port), own.Endpoints()...)
	stop := newCaller(t, fmt.Sprintf("127.0.0.1:%d", port)).keepCalling(4)
	defer stop()
	url := "http://" + a.http + "/"

	p := b.open(t, url, desktop())
	p.until(t, "the page is there", `document.querySelectorAll("#rows tr").length === 2 && document.getElementById("link").textContent === "live"`)
	p.until(t, "all is well", `document.getElementById("now-title").textContent === "All is well" && document.title.startsWith("lbagent")`)
	p.until(t, "nobody uses cart yet", `document.getElementById("rows").textContent.includes("not in use, so not probed")`)
	if _, stderr, code := a.cli("lookup", "cart"); code != 0 {
		t.Fatal(stderr)
	}
	p.until(t, "cart is used", `!document.getElementById("rows").textContent.includes("not in use")`)
	p.until(t, "calls are counted", `[...document.querySelectorAll("#rows tr")].some((r) => r.textContent.includes("user") && Number(r.cells[2].textContent) > 0)`)
	p.clean(t, "all is well")
	p.shot(t, "well")

	// A backend dies: the page says so by itself.
	p.run(t, `await page.evaluate(() => { window.same = true })`)
	bs[0].kill()
	p.until(t, "the dead backend is told", `document.getElementById("problems").textContent.includes("1 of 3 backends out: 1 unreachable")`)
	p.until(t, "its event is told", fmt.Sprintf(`[...document.querySelectorAll("#events li.out")].some((e) => e.textContent.includes(%q) && e.textContent.includes("unreachable"))`, bs[0].addr))
	if p.text(t, `return await page.evaluate(() => window.same)`) != "true" {
		t.Error("the page was loaded anew to say so")
	}

	// By keyboard alone: find the service, open it, go back. A character alone does nothing (WCAG 2.1.4).
	p.run(t, `await page.evaluate(() => document.activeElement.blur()); await page.keyboard.press("/"); await page.keyboard.press("k")`)
	if at := p.text(t, `return await page.evaluate(() => document.activeElement.tagName)`); at != "BODY" {
		t.Errorf("after a character: %s", at)
	}
	p.run(t, `await page.keyboard.press("Control+k"); await page.keyboard.type("user")`)
	p.until(t, "the search finds one", `document.querySelectorAll("#rows tr").length === 1`)
	for range 12 {
		p.run(t, `await page.keyboard.press("Tab")`)
		if p.text(t, `return await page.evaluate(() => document.activeElement.closest("#rows") ? document.activeElement.textContent : "")`) == "user" {
			break
		}
	}
	p.run(t, `await page.keyboard.press("Enter")`)
	p.until(t, "the service is open", `location.hash === "#service=user" && document.querySelectorAll(".backends > li").length === 3`)
	p.until(t, "what is out comes first, with its reason", fmt.Sprintf(`document.querySelector(".backends > li.out h3").textContent === %q && document.querySelector(".backends > li .sentence").textContent.includes("connection refused") && document.querySelector(".backends > li").classList.contains("out")`, bs[0].addr))
	p.until(t, "the others share the calls", `[...document.querySelectorAll(".backends > li.in .share")].filter((s) => parseFloat(s.textContent) > 30).length === 2`)
	p.until(t, "the picture has bands", `document.querySelectorAll(".stack path").length >= 2 && document.querySelector(".readout").textContent.includes("calls/s")`)
	p.run(t, `await page.click(".backends > li summary")`)
	p.until(t, "all that is known of it", `document.querySelector(".backends > li .facts").textContent.includes("services/user/")`)
	p.until(t, "there are two moments", `Number(document.querySelector("input[type=range]").max) >= 1`)
	p.run(t, `await page.focus("input[type=range]"); await page.keyboard.press("Home"); await page.keyboard.press("ArrowRight")`)
	p.until(t, "a moment is read by keyboard", `document.querySelector("input[type=range]").getAttribute("aria-valuetext").includes("calls/s") && !document.querySelector(".cursor").hidden`)
	p.clean(t, "one service")
	p.shot(t, "service")
	p.run(t, `await page.reload()`)
	p.until(t, "the fragment opens it again", `document.querySelectorAll(".backends > li").length === 3`)
	p.run(t, `await page.fill("#backend-search", args[0])`, bs[1].addr)
	p.until(t, "one backend is found", fmt.Sprintf(`document.querySelectorAll(".backends > li").length === 1 && location.hash === "#service=user&q=" + encodeURIComponent(%q)`, bs[1].addr))
	p.run(t, `await page.evaluate(() => document.activeElement.blur()); await page.keyboard.press("Escape")`)
	p.until(t, "Escape goes back", `location.hash === "" && !document.getElementById("overview").hidden`)
	p.until(t, "events name their services again", `[...document.querySelectorAll("#events li.out p")].every((e) => e.textContent.startsWith("user"))`)

	// The last backend of another service dies, a mute is forgotten, etcd goes.
	cart.kill()
	if _, stderr, code := a.cli("mute", "user", bs[1].addr, "--for", "1h"); code != 0 {
		t.Fatal(stderr)
	}
	own.Stop()
	p.until(t, "the worst is first", `document.querySelector("#problems li").textContent.includes("cart: the only backend is not usable") && document.querySelector("#problems li").className === "bad"`)
	p.until(t, "etcd's absence is told", `document.getElementById("problems").textContent.includes("etcd is not reachable") && document.getElementById("agent").textContent.includes("not reachable")`)
	p.until(t, "the mute is told", fmt.Sprintf(`document.getElementById("agent").textContent.includes("user %s on this host until")`, bs[1].addr))
	p.until(t, "the tab says it", `/^\(\d\) lbagent/.test(document.title)`)
	p.clean(t, "faults")
	p.shot(t, "faults")
	for _, how := range []struct {
		name string
		look
	}{
		{"dark", look{Viewport: size{1280, 900}, ColorScheme: "dark", Motion: "reduce"}}, {"narrow", look{Viewport: size{360, 740}, ColorScheme: "light", Motion: "reduce"}},
		{"narrow-dark", look{Viewport: size{360, 740}, ColorScheme: "dark", Motion: "reduce"}},
	} {
		other := b.open(t, url, how.look)
		other.until(t, "the page is there", `document.querySelectorAll("#rows tr").length === 2`)
		other.clean(t, how.name)
		other.shot(t, "faults-"+how.name)
		other.run(t, `await page.goto(args[0] + "#service=user")`, url)
		other.until(t, "the service is there", `document.querySelectorAll(".backends > li").length === 3 && document.querySelectorAll(".stack path").length > 0`)
		other.clean(t, how.name+", one service")
		other.shot(t, "service-"+how.name)
		other.run(t, `await page.close()`)
	}

	// The agent goes and comes back. The stream has been open for longer than any limit of an ordinary request.
	a.stop()
	p.until(t, "the agent's absence is told", `!document.getElementById("lost").hidden && /not reachable since \d\d:\d\d:\d\d/.test(document.getElementById("lost").textContent) && document.title.includes("not reachable")`)
	p.clean(t, "without the agent")
	p.shot(t, "lost")
	a.start()
	p.until(t, "it is back", `document.getElementById("lost").hidden && document.getElementById("link").textContent === "live" && document.querySelectorAll("#rows tr").length === 2`)
	p.run(t, `await page.close()`)
}

// browseHostile looks at what others may write into etcd: it is shown as text, and no request, no script and no element comes of it.
func browseHostile(t *testing.T, b *browser) {
	const evil = `<img src=x onerror=alert(1)><script>alert(2)</script>"'><svg onload=alert(3)>`
	edit := etcdClient(t, etcd.Endpoints()...)
	base := namespace(t) + "services/user/"
	for key, value := range map[string]string{
		"a":                                     `{"Op":0,"Addr":"127.0.0.1:9","Metadata":{"zone":"` + strings.ReplaceAll(evil, `"`, `\"`) + `","` + strings.ReplaceAll(evil, `"`, `\"`) + `":"javascript:alert(4)"}}`,
		"b" + strings.ReplaceAll(evil, "/", ""): `{"Op":0,"Addr":"127.0.0.1:10"}`,
		"c" + strings.ReplaceAll(evil, "/", ""): `not json ` + evil,
	} {
		if _, err := edit.Put(t.Context(), base+key, value); err != nil {
			t.Fatal(err)
		}
	}
	a := startAgent(t, "- {name: user, prefix: services/user/}\n- {name: a.b:c@d_e-f, backends: [\"127.0.0.1:11\"]}", etcd.Endpoints()...)
	p := b.open(t, "http://"+a.http+"/#service=user", desktop())
	p.until(t, "the service is open", `document.querySelectorAll(".backends > li").length === 2`)
	p.run(t, `for (const s of await page.$$("summary")) if (await s.isVisible()) await s.click()`)
	p.until(t, "markup is shown as text", `document.querySelector(".backends").textContent.includes("<script>alert(2)") && document.querySelector(".records").textContent.includes("onerror=alert(1)")`)
	p.run(t, `await page.goto(args[0])`, "http://"+a.http+"/#service="+strings.NewReplacer("<", "%3C", ">", "%3E", `"`, "%22", " ", "+").Replace(evil)+"&q=%3Cimg+src%3Dx+onerror%3Dalert(5)%3E")
	p.until(t, "a service that isn't there", `document.querySelector(".summary").textContent.includes("isn't followed")`)
	if n := p.text(t, `return await page.evaluate(() => document.querySelectorAll("img, main script, main svg[onload], [onerror]").length)`); n != "0" {
		t.Errorf("%s elements came of names", n)
	}
	p.run(t, `await page.goto(args[0])`, "http://"+a.http+"/#service=a.b%3Ac%40d_e-f")
	p.until(t, "an odd name", `document.querySelectorAll(".backends > li").length === 1`)
	p.run(t, `complaints().filter((c) => c.includes("404")).length; await page.keyboard.press("Escape")`)
	p.until(t, "the overview", `document.querySelectorAll("#rows tr").length === 2`)
	p.run(t, `await page.click("text=a.b:c@d_e-f")`)
	p.until(t, "the link leads there", `document.querySelector("h2.service").textContent.includes("a.b:c@d_e-f")`)
	p.clean(t, "hostile names")

	// The policy holds if the page should fail: a script that somehow gets in doesn't run.
	p.run(t, `await page.evaluate(() => { const s = document.createElement("div"); try { s.innerHTML = "<img src=x onerror=\"window.owned=1\">"; window.html = 1 } catch {} document.body.append(s); try { s.setAttribute("onclick", "window.owned=1"); s.click(); const j = document.createElement("script"); j.text = "window.owned=1"; s.append(j) } catch {} })`)
	if got := p.text(t, `return await page.evaluate(() => String(window.owned) + String(window.html))`); got != "undefinedundefined" {
		t.Errorf("inline script ran, or HTML was made of a string: %s", got)
	}
	p.run(t, `await page.close()`)
}

// browseLarge is a host with 1,000 services of 100 backends.
func browseLarge(t *testing.T, b *browser) {
	const services, each = 1000, 100
	edit := etcdClient(t, etcd.Endpoints()...)
	var config strings.Builder
	for i := range services {
		name := fmt.Sprintf("service-%04d", i)
		fmt.Fprintf(&config, "- {name: %s, prefix: services/%s/, probe: {type: none}}\n", name, name)
		var ops []clientv3.Op
		for j := range each {
			addr := fmt.Sprintf("10.%d.%d.%d:80", i>>8, i&255, j+1)
			ops = append(ops, clientv3.OpPut(namespace(t)+"services/"+name+"/"+addr, `{"Op":0,"Addr":"`+addr+`"}`))
		}
		if _, err := edit.Txn(t.Context()).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	a := startAgent(t, config.String(), etcd.Endpoints()...)
	poll(t, "all lists are there", func() bool { return a.all(services, each) })
	began := time.Now()
	p := b.open(t, "http://"+a.http+"/", desktop())
	p.until(t, "the page is there", `document.querySelectorAll("#rows tr").length === 50`)
	t.Logf("1,000 services of 100 backends, %s: the first page after %v, %s bytes; long tasks until then: %s", loadNow(), time.Since(began).Round(time.Millisecond),
		p.text(t, `return await page.evaluate(() => performance.getEntriesByType("resource").reduce((n, r) => n + r.transferSize, 0))`),
		p.text(t, `return await page.evaluate(() => new Promise((done) => { new PerformanceObserver((l) => done(l.getEntries().map((e) => Math.round(e.duration)).join(" ms, ") + " ms")).observe({type: "longtask", buffered: true}); setTimeout(() => done("none"), 200) }))`))
	spent, seen := a.cpu(), time.Now()
	p.run(t, `await page.waitForTimeout(3000)`)
	t.Logf("watched by one page while nothing happens: %.1f %% of a core (of a build with the race detector, if that is on)", 100*(a.cpu()-spent).Seconds()/time.Since(seen).Seconds())
	p.run(t, `await page.fill("#search", "service-0777")`)
	p.until(t, "the search finds one", `document.querySelectorAll("#rows tr").length === 1`)
	p.run(t, `await page.click("text=service-0777")`)
	p.until(t, "its backends are there", `document.querySelectorAll(".backends > li").length === 100`)
	p.run(t, `await page.fill("#backend-search", "10.3.9.42:")`)
	p.until(t, "one is found", `document.querySelectorAll(".backends > li").length === 1`)
	p.run(t, `await page.evaluate(() => document.activeElement.blur()); await page.keyboard.press("Escape"); await page.fill("#search", "")`)
	p.until(t, "all again", `document.getElementById("where").textContent.includes("of 1000")`)
	p.run(t, `await page.click("#next")`)
	p.until(t, "the next page", `document.getElementById("where").textContent.startsWith("51")`)
	if nodes := p.text(t, `return await page.evaluate(() => String(document.querySelectorAll("*").length < 4000))`); nodes != "true" {
		t.Error("the page holds more elements than it shows")
	}
	p.clean(t, "a large host")
	p.shot(t, "large")
	p.run(t, `await page.close()`)
}
