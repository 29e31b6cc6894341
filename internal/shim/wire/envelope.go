// SPDX-License-Identifier: Apache-2.0

package wire

// Request is ttrpc's envelope of a call.
type Request struct {
	Service     string
	Method      string
	Payload     []byte
	TimeoutNano int64
}

func (m *Request) fields(c *codec) {
	c.string(1, &m.Service)
	c.string(2, &m.Method)
	c.bytes(3, &m.Payload)
	c.int64(4, &m.TimeoutNano)
}

// RPCStatus is google.rpc.Status.
type RPCStatus struct {
	Code    int32
	Message string
}

func (m *RPCStatus) fields(c *codec) {
	c.int32(1, &m.Code)
	c.string(2, &m.Message)
}

// Response is ttrpc's envelope of an answer.
type Response struct {
	Status  RPCStatus
	Payload []byte
}

func (m *Response) fields(c *codec) {
	c.message(1, &m.Status)
	c.bytes(2, &m.Payload)
}
