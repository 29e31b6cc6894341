// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berth-run/berth/internal/shimapi/shimpb"
	"github.com/berth-run/berth/internal/shimapi/task"
)

var at = time.Unix(1790000000, 123456789)

// pairs are the same messages, once ours and once in the protobuf runtime's types.
var pairs = []struct {
	ours   Message
	theirs proto.Message
}{
	{
		&CreateTaskRequest{
			ID: "id", Bundle: "/b", Rootfs: []Mount{{}, {"overlay", "s", "t", []string{"ro", "a=b"}}}, Terminal: true, Stdin: "i", Stdout: "o", Stderr: "e",
			Checkpoint: "c", ParentCheckpoint: "p", Options: Any{"url", []byte{0, 1, 255}},
		},
		&task.CreateTaskRequest{
			Id: "id", Bundle: "/b", Rootfs: []*types.Mount{{}, {Type: "overlay", Source: "s", Target: "t", Options: []string{"ro", "a=b"}}}, Terminal: true, Stdin: "i", Stdout: "o", Stderr: "e",
			Checkpoint: "c", ParentCheckpoint: "p", Options: &anypb.Any{TypeUrl: "url", Value: []byte{0, 1, 255}},
		},
	},
	{&ProcessRequest{"id", "exec"}, &task.DeleteRequest{Id: "id", ExecId: "exec"}},
	{&ProcessRequest{"id", "exec"}, &task.StateRequest{Id: "id", ExecId: "exec"}},
	{&ProcessRequest{"id", "exec"}, &task.StartRequest{Id: "id", ExecId: "exec"}},
	{&ProcessRequest{"id", "exec"}, &task.WaitRequest{Id: "id", ExecId: "exec"}},
	{&ProcessRequest{ID: "id"}, &task.PidsRequest{Id: "id"}},
	{&ProcessRequest{ID: "id"}, &task.PauseRequest{Id: "id"}},
	{&ProcessRequest{ID: "id"}, &task.ResumeRequest{Id: "id"}},
	{&ProcessRequest{ID: "id"}, &task.ConnectRequest{Id: "id"}},
	{&ProcessRequest{ID: "id"}, &shimpb.ReopenLogRequest{Id: "id"}},
	{&PIDResponse{7}, &task.CreateTaskResponse{Pid: 7}},
	{&PIDResponse{1 << 31}, &task.StartResponse{Pid: 1 << 31}},
	{&PIDResponse{4194304}, &shimpb.ExecResponse{Pid: 4194304}},
	{&DeleteResponse{1, 137, at}, &task.DeleteResponse{Pid: 1, ExitStatus: 137, ExitedAt: timestamppb.New(at)}},
	{&DeleteResponse{}, &task.DeleteResponse{}},
	{&ResizePtyRequest{"id", "exec", 80, 24}, &task.ResizePtyRequest{Id: "id", ExecId: "exec", Width: 80, Height: 24}},
	{
		&StateResponse{"id", "/b", 9, StatusPaused, "i", "o", "e", true, 255, at, "exec"},
		&task.StateResponse{Id: "id", Bundle: "/b", Pid: 9, Status: 4, Stdin: "i", Stdout: "o", Stderr: "e", Terminal: true, ExitStatus: 255, ExitedAt: timestamppb.New(at), ExecId: "exec"},
	},
	{&KillRequest{"id", "exec", 9, true}, &task.KillRequest{Id: "id", ExecId: "exec", Signal: 9, All: true}},
	{&CloseIORequest{"id", "exec", true}, &task.CloseIORequest{Id: "id", ExecId: "exec", Stdin: true}},
	{&UpdateTaskRequest{"id", Any{"url", []byte("{}")}}, &task.UpdateTaskRequest{Id: "id", Resources: &anypb.Any{TypeUrl: "url", Value: []byte("{}")}}},
	{&CheckpointTaskRequest{"id", "/dir"}, &task.CheckpointTaskRequest{Id: "id", Path: "/dir"}},
	{&WaitResponse{137, at}, &task.WaitResponse{ExitStatus: 137, ExitedAt: timestamppb.New(at)}},
	{&WaitResponse{0, time.Unix(-5, 7)}, &task.WaitResponse{ExitedAt: timestamppb.New(time.Unix(-5, 7))}},
	{&ConnectResponse{1, 2, "v"}, &task.ConnectResponse{ShimPid: 1, TaskPid: 2, Version: "v"}},
	{&ShutdownRequest{"id", true}, &task.ShutdownRequest{Id: "id", Now: true}},
	{
		&CreateOptions{"/r", "/root", true, "/log", true, true, true, true, "/l", 65536, 1 << 31, []string{"a", ""}},
		&shimpb.CreateOptions{Runtime: "/r", RuntimeRoot: "/root", SystemdCgroup: true, LogPath: "/log", Deferred: true, Native: true, Stdin: true, StdinOnce: true, LogFolder: "/l", IoUid: 65536, IoGid: 1 << 31, RuntimeArgs: []string{"a", ""}},
	},
	{
		&InfoResponse{"v", -1, []TaskInfo{{"id", PhaseStopped, 3, 137, at, true, 1 << 63}, {}}},
		&shimpb.InfoResponse{Version: "v", Pid: -1, Tasks: []*shimpb.TaskInfo{
			{Id: "id", Status: shimpb.Status_STOPPED, Pid: 3, ExitStatus: 137, ExitedAt: timestamppb.New(at), OomKilled: true, LogBytesDropped: 1 << 63}, {},
		}},
	},
	{
		&ExecRequest{"id", "exec", []byte("{}"), true, true, true, true},
		&shimpb.ExecRequest{Id: "id", ExecId: "exec", Process: []byte("{}"), Stdin: true, Stdout: true, Stderr: true, Lease: true},
	},
	{&Request{"s", "m", []byte("p"), 5}, &ttrpc.Request{Service: "s", Method: "m", Payload: []byte("p"), TimeoutNano: 5}},
}

func TestMessagesAreWhatTheProtobufRuntimeReadsAndWrites(t *testing.T) {
	for _, pair := range pairs {
		name := string(pair.theirs.ProtoReflect().Descriptor().FullName())
		theirs := reflect.New(reflect.TypeOf(pair.theirs).Elem()).Interface().(proto.Message)
		if err := proto.Unmarshal(Marshal(pair.ours), theirs); err != nil {
			t.Errorf("%s: they cannot read ours: %v", name, err)
		} else if !proto.Equal(theirs, pair.theirs) {
			t.Errorf("%s: they read %v, not %v", name, theirs, pair.theirs)
		}
		data, err := proto.Marshal(pair.theirs)
		if err != nil {
			t.Fatal(err)
		}
		ours := reflect.New(reflect.TypeOf(pair.ours).Elem()).Interface().(Message)
		if err := Unmarshal(data, ours); err != nil {
			t.Errorf("%s: we cannot read theirs: %v", name, err)
		} else if !reflect.DeepEqual(ours, pair.ours) {
			t.Errorf("%s: we read %+v, not %+v", name, ours, pair.ours)
		}
	}
	pids := Marshal(&PidsResponse{[]ProcessInfo{{1}, {4194303}}})
	var theirs task.PidsResponse
	if err := proto.Unmarshal(pids, &theirs); err != nil || len(theirs.Processes) != 2 || theirs.Processes[1].Pid != 4194303 {
		t.Errorf("PidsResponse: %v, %v", &theirs, err)
	}
	var answer ttrpc.Response
	if err := proto.Unmarshal(Marshal(&Response{RPCStatus{5, "m\xff"}, []byte("p")}), &answer); err != nil || answer.Status.Code != 5 || answer.Status.Message != "m\uFFFD" || string(answer.Payload) != "p" {
		t.Errorf("Response: %v, %v", &answer, err)
	}
}

func TestUnknownFieldsAreSkipped(t *testing.T) {
	data := Marshal(&KillRequest{ID: "id", Signal: 9})
	data = append(data, 0xa8, 0x06, 5)                               // 101: varint
	data = append(data, 0xb2, 0x06, 3, 1, 2, 3)                      // 102: bytes
	data = append(data, 0xb9, 0x06, 1, 2, 3, 4, 5, 6, 7, 8)          // 103: 64 bits
	data = append(data, 0xc5, 0x06, 1, 2, 3, 4)                      // 104: 32 bits
	data = append(data, Marshal(&KillRequest{ID: "", All: true})...) // and on
	var kill KillRequest
	if err := Unmarshal(data, &kill); err != nil || kill != (KillRequest{ID: "id", Signal: 9, All: true}) {
		t.Errorf("%+v, %v", kill, err)
	}
}

func TestMalformedMessages(t *testing.T) {
	for name, data := range map[string][]byte{
		"cut key":         {0x80},
		"field 0":         {0x02, 0},
		"cut number":      {0x18, 0x80},
		"number too long": {0x18, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1},
		"cut string":      {0x0a, 5, 'a'},
		"huge length":     {0x0a, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1},
		"cut fixed":       {0x09, 1, 2},
		"group":           {0x0b},
	} {
		var kill KillRequest
		if err := Unmarshal(data, &kill); !errors.Is(err, errMalformed) {
			t.Errorf("%s: %+v, %v", name, kill, err)
		}
	}
}

func FuzzUnmarshalAgreesWithTheProtobufRuntime(f *testing.F) {
	for _, pair := range pairs {
		f.Add(Marshal(pair.ours))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var theirs shimpb.ExecRequest
		theirErr := proto.Unmarshal(data, &theirs)
		var ours ExecRequest
		err := Unmarshal(data, &ours)
		if theirErr != nil {
			return // theirs is stricter about UTF-8, groups and the like
		}
		if err != nil {
			if bytes.ContainsAny(data, "\x0b\x13\x1b\x23\x2b\x33\x3b\x43\x4b\x53\x5b\x63\x6b\x73\x7b") {
				return // groups, which nobody sends
			}
			t.Fatalf("%x: %v", data, err)
		}
		if ours.ID != theirs.Id || ours.ExecID != theirs.ExecId || !bytes.Equal(ours.Process, theirs.Process) || ours.Stdin != theirs.Stdin {
			t.Fatalf("%x: %+v, they %v", data, ours, &theirs)
		}
	})
}
