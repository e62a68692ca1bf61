package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	_ "google.golang.org/grpc/reflection/grpc_reflection_v1alpha" // its messages
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
)

// doorsAs holds the job of a process that is somebody at the doors.
const doorsAs = "LBAGENT_E2E_DOORS"

// doorRoute is a request of the JSON face; Path is empty if a method has none.
type doorRoute struct{ Method, Path string }

type doorTry struct {
	Method, Request string
	Route           doorRoute
}

// doorJob is what a visitor is to do.
type doorJob struct {
	Do            string // list, try, forge, raw, files, crowd, flood
	Open, Admin   string // sockets
	TCP           string // host:port
	Tries         []doorTry
	Raw           []string // written to both sockets, each as it is
	Paths, Secret []string // files to tamper with, and to read
	Door          string   // where crowd and flood go
	Count         int
}

// doorsMain is the process of a visitor: it does its job, and prints a line for each thing that it tried.
func doorsMain() int {
	var job doorJob
	if err := json.Unmarshal([]byte(os.Getenv(doorsAs)), &job); err != nil {
		fmt.Println(err)
		return 1
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	v := &visitor{ctx: ctx, job: job}
	jobs := map[string]func() error{"list": v.list, "try": v.try, "forge": v.forge, "raw": v.raw, "files": v.files, "crowd": v.crowd, "flood": v.flood}
	if err := jobs[job.Do](); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

type visitor struct {
	ctx context.Context
	job doorJob
}

// doors are their addresses: the path of a socket, or host:port.
func (v *visitor) doors() map[string]string {
	return map[string]string{"open": v.job.Open, "admin": v.job.Admin, "tcp": v.job.TCP}
}

// dialRaw connects to a door.
func dialRaw(ctx context.Context, door string) (net.Conn, error) {
	network := "tcp"
	if filepath.IsAbs(door) {
		network = "unix"
	}
	return new(net.Dialer).DialContext(ctx, network, door)
}

// dialDoor connects by gRPC.
func dialDoor(door string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+door, grpc.WithContextDialer(dialRaw), grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// list prints every method that the agent's reflection names.
func (v *visitor) list() error {
	cc, err := dialDoor(v.job.Open)
	if err != nil {
		return err
	}
	s, err := grpc_reflection_v1.NewServerReflectionClient(cc).ServerReflectionInfo(v.ctx)
	if err != nil {
		return err
	}
	if err := s.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}); err != nil {
		return err
	}
	answer, err := s.Recv()
	if err != nil {
		return err
	}
	for _, service := range answer.GetListServicesResponse().GetService() {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service.GetName()))
		if err != nil {
			return err
		}
		methods := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			fmt.Printf("%s/%s\n", service.GetName(), methods.Get(i).Name())
		}
	}
	return nil
}

// try tries every method at all doors, by both faces.
func (v *visitor) try() error {
	for door, socket := range v.doors() {
		cc, err := dialDoor(socket)
		if err != nil {
			return err
		}
		for _, t := range v.job.Tries {
			fmt.Printf("%s %s grpc: %s\n", t.Method, door, v.byGRPC(v.ctx, cc, t))
			if t.Route.Path != "" {
				fmt.Printf("%s %s json: %s\n", t.Method, door, v.byJSON(socket, t))
			}
		}
	}
	return nil
}

// byGRPC makes one call, of a stream the first answer.
func (v *visitor) byGRPC(ctx context.Context, cc *grpc.ClientConn, t doorTry) string {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(t.Method, "/", ".")))
	if err != nil {
		return err.Error()
	}
	m := d.(protoreflect.MethodDescriptor)
	request, answer := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
	if err := protojson.Unmarshal([]byte(t.Request), request); err != nil {
		return err.Error()
	}
	if !m.IsStreamingServer() {
		return came(cc.Invoke(ctx, "/"+t.Method, request, answer))
	}
	s, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: m.IsStreamingClient()}, "/"+t.Method)
	if err != nil {
		return came(err)
	}
	return came(stream(s, request, answer))
}

func stream(s grpc.ClientStream, request, answer proto.Message) error {
	if err := s.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	if err := s.RecvMsg(answer); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// came is what an error of gRPC says of a door.
func came(err error) string {
	switch st := status.Convert(err); st.Code() {
	case codes.PermissionDenied:
		return denied
	case codes.Unimplemented:
		if strings.HasPrefix(st.Message(), "unknown ") { // service or method: grpc-go's words
			return absent
		}
	case codes.Unavailable:
		if strings.Contains(st.Message(), "connect: permission denied") {
			return shut
		}
		return st.String()
	case codes.DeadlineExceeded, codes.ResourceExhausted:
		return st.String()
	}
	return in
}

// byJSON makes one request; of an answer without end only the head is read.
func (v *visitor) byJSON(socket string, t doorTry) string {
	path := strings.ReplaceAll(t.Route.Path, "{service}", "user")
	if strings.Contains(t.Request, `"shop"`) {
		path = strings.ReplaceAll(t.Route.Path, "{service}", "shop")
	}
	body := t.Request
	switch t.Route.Method {
	case http.MethodGet:
		body = ""
		if t.Route.Path == path && strings.Contains(t.Request, `"none"`) {
			path += "?service=none"
		}
	case http.MethodDelete:
		body = ""
		path += "?address=127.0.0.1:1"
	case http.MethodPatch:
		body = `{"address":"127.0.0.1:1","load":1}`
	}
	c, err := dialRaw(v.ctx, socket)
	if errors.Is(err, syscall.EACCES) {
		return shut
	}
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", t.Route.Method, path, len(body), body)
	return saidHTTP(bufio.NewReader(c))
}

// saidHTTP is what an answer of HTTP says of a door.
func saidHTTP(br *bufio.Reader) string {
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return "no answer: " + err.Error()
	}
	line, _ := bufio.NewReader(resp.Body).ReadBytes('\n') // an error's body ends with its line
	switch {
	case resp.StatusCode == http.StatusForbidden && bytes.Contains(line, []byte(`"FORBIDDEN"`)):
		return denied
	case resp.StatusCode == http.StatusNotFound && bytes.Contains(line, []byte(`"message":"Not Found"`)),
		resp.StatusCode == http.StatusNotImplemented && bytes.Contains(line, []byte(`"message":"Method Not Allowed"`)):
		return absent
	case resp.StatusCode == http.StatusTooManyRequests:
		return fmt.Sprintf("429 %s", bytes.TrimSpace(line))
	case resp.StatusCode == http.StatusBadRequest && !bytes.Contains(line, []byte(`"domain":"lbagent"`)):
		return fmt.Sprintf("400 %s", bytes.TrimSpace(line)) // the request never got as far as who may
	}
	return in
}

// forge tries every method by gRPC with an identity that only the gateway may tell, in each spelling.
func (v *visitor) forge() error {
	const key, root = "lbagent-peer", "0 0 1 true true - -"
	for door, socket := range v.doors() {
		cc, err := dialDoor(socket)
		if err != nil {
			return err
		}
		for _, t := range v.job.Tries {
			for _, pairs := range [][]string{
				{key, root}, {"Lbagent-Peer", root}, {key, root, key, root}, {key + "-bin", root}, {"grpc-metadata-" + key, root}, {"grpcgateway-" + key, root},
				{"x-forwarded-user", "root", "authorization", "Basic cm9vdDo="}, {key, "0 0 1 true true - -\x20"},
			} {
				ctx := metadata.AppendToOutgoingContext(v.ctx, pairs...)
				fmt.Printf("%s %s grpc %s=%q: %s\n", t.Method, door, pairs[0], pairs[1], v.byGRPC(ctx, cc, t))
			}
		}
	}
	return nil
}

// raw writes each request to all doors, with a last one that ends the connection behind it, and prints every status that comes back.
func (v *visitor) raw() error {
	for door, socket := range v.doors() {
		for i, request := range v.job.Raw {
			c, err := dialRaw(v.ctx, socket)
			if err != nil {
				return err
			}
			_ = c.SetDeadline(time.Now().Add(patience))
			// An error says that the agent has refused and closed before all was written.
			_, _ = io.WriteString(c, request+"GET /v1/services HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
			fmt.Printf("%s %d: %s\n", door, i, strings.Join(statuses(bufio.NewReader(c)), " "))
			c.Close()
		}
	}
	return nil
}

// statuses reads answers until there are no more.
func statuses(br *bufio.Reader) (all []string) {
	for {
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			return all
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		all = append(all, fmt.Sprint(resp.StatusCode))
	}
}

// files tries what a stranger could do to the agent's files: each line is what it managed.
func (v *visitor) files() error {
	mine, err := os.MkdirTemp("", "lbdoor-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(mine)
	fake := filepath.Join(mine, "fake.sock")
	l, err := net.Listen("unix", fake)
	if err != nil {
		return err
	}
	defer l.Close()
	did := func(what, path string, err error) {
		if err == nil {
			fmt.Println(what, path)
		}
	}
	for _, path := range v.job.Paths {
		dir := filepath.Dir(path)
		did("removed", path, os.Remove(path))
		did("renamed", path, os.Rename(path, filepath.Join(mine, "taken")))
		did("put another socket in place of", path, os.Rename(fake, path))
		did("linked beside", path, os.Symlink("/etc/passwd", path+".link"))
		did("wrote beside", path, os.WriteFile(filepath.Join(dir, "stranger"), nil, 0o600))
		did("made a folder beside", path, os.Mkdir(filepath.Join(dir, "stranger.d"), 0o700))
		did("changed the mode of", path, os.Chmod(path, 0o777))
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		did("opened for writing", path, err)
		f.Close()
	}
	for _, path := range v.job.Secret {
		_, err := os.ReadFile(path)
		did("read", path, err)
		_, err = os.ReadDir(path)
		did("listed", path, err)
	}
	fmt.Println("that was all")
	return nil
}

// crowd opens as many connections and watches as it can, up to Count of each, and as many requests that never end; then it says so and stays until its standard input ends.
func (v *visitor) crowd() error {
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	clients := make([]lbagentv1.LookupServiceClient, 0, 16)
	for range 16 {
		cc, err := dialDoor(v.doors()[v.job.Door])
		if err != nil {
			return err
		}
		defer cc.Close()
		clients = append(clients, lbagentv1.NewLookupServiceClient(cc))
	}
	watches, full := 0, ""
	for i := range v.job.Count {
		w, err := clients[i%len(clients)].Watch(v.ctx, &lbagentv1.WatchRequest{Service: "user"})
		if err == nil {
			_, err = w.Recv()
		}
		if err != nil {
			full = status.Convert(err).Message()
			break
		}
		watches++
	}
	fmt.Printf("%d watches: %s\n", watches, full)

	// Half of an HTTP/1.1 head, a request whose body never ends, or nothing at all.
	said := []string{"", "GET /v1/services HTTP/1.1\r\nHost:", "POST /v1/report HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{"}
	for i := range v.job.Count {
		c, err := dialRaw(v.ctx, v.doors()[v.job.Door])
		if err != nil {
			return err
		}
		conns = append(conns, c)
		if _, err := io.WriteString(c, said[i%len(said)]); err != nil {
			break
		}
	}
	fmt.Printf("%d connections\n", len(conns))
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}
