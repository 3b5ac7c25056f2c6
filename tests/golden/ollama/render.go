// Renders the conversations of cases.json with Go's text/template as Ollama does, onto standard output:
//
//	go run render.go ../../../template.txt cases.json > rendered.json
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"text/template"
)

type message struct{ Role, Content string }

type rendered struct {
	Template string   `json:"template"`
	Texts    []string `json:"texts"`
}

func main() {
	source, err := os.ReadFile(os.Args[1])
	check(err)
	data, err := os.ReadFile(os.Args[2])
	check(err)
	var cases [][]message
	check(json.Unmarshal(data, &cases))
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(string(source)))
	out := rendered{Template: string(source)}
	for _, each := range cases {
		var messages []*message
		for i := range each {
			messages = append(messages, &each[i])
		}
		var text bytes.Buffer
		check(parsed.Execute(&text, map[string]any{"Messages": messages, "System": "", "Response": ""}))
		out.Texts = append(out.Texts, text.String())
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	check(encoder.Encode(out))
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
