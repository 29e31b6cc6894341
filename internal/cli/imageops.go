// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/berth-run/berth/internal/cli/criclient"
	"github.com/berth-run/berth/internal/cli/output"
	"github.com/berth-run/berth/internal/imageapi/imagepb"
)

// imageCommands are what `berth images` has beside its list. Most speak berth.v1.Images, which other runtimes do not.
func (c *CLI) imageCommands() []*cobra.Command {
	return []*cobra.Command{c.listImagesCommand("ls", "list"), c.rmiCommand("rm", "remove"), c.pullCommand(), c.fsckCommand(), c.pruneCommand(), c.tagCommand(), c.importCommand(), c.exportCommand()}
}

func (c *CLI) fsckCommand() *cobra.Command {
	var repair, quiet bool
	cmd := &cobra.Command{
		Use:   "fsck",
		Short: "Read all images and compare them with their checksums",
		Long: `Read all that is kept of images from the disk and compare it with its checksums.

What is damaged is taken out of use: new containers do not get it, those that run are left alone, and the next pull of its images makes it anew;
with --repair that is done at once. The exit code is 1 if damage is left.`,
		Args:              args(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return c.fsck(cmd, repair, quiet) },
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "pull images with damage again, from where they came")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only damage")
	return cmd
}

func (c *CLI) fsck(cmd *cobra.Command, repair, quiet bool) error {
	client, err := c.client(cmd.Context())
	if err != nil {
		return err
	}
	ctx, cancel := client.Unbounded(cmd.Context())
	defer cancel()
	answers, err := client.Operator.Check(ctx, &imagepb.CheckRequest{Repair: repair})
	if err != nil {
		return client.Error("check images", err)
	}
	show := io.Discard
	if !quiet {
		show = c.o.Err
	}
	meter := newMeter(show, "checking images")
	defer meter.stop()
	damaged := map[string]bool{} // images
	failed := 0
	for {
		m, err := answers.Recv()
		if err != nil {
			meter.stop()
			return client.Error("check images", err) // the summary comes before the end
		}
		if p := m.GetProgress(); p != nil {
			meter.set(fmt.Sprintf("%s of %s", output.Size(uint64(p.GetBytes())), output.Size(uint64(p.GetTotal()))))
		}
		if d := m.GetDamage(); d != nil {
			for _, im := range d.GetImages() {
				damaged[im] = true
			}
			meter.print(c.o.Out, damageLine(d))
		}
		if r := m.GetRepair(); r != nil {
			line := "repaired " + r.GetImage()
			if r.GetError() != "" {
				failed++
				line = "not repaired: " + r.GetImage() + ": " + r.GetError()
			}
			meter.print(c.o.Out, line)
		}
		if s := m.GetSummary(); s != nil {
			meter.stop()
			return c.fsckSummary(s, repair, quiet, failed)
		}
	}
}

func damageLine(d *imagepb.Damage) string {
	line := "damaged " + d.GetKind() + " " + d.GetObject() + ": " + d.GetReason()
	if len(d.GetImages()) > 0 {
		line += "; of " + strings.Join(d.GetImages(), ", ")
	}
	if !d.GetQuarantined() {
		line += "; it stays in use"
	}
	return line
}

func (c *CLI) fsckSummary(s *imagepb.CheckSummary, repair, quiet bool, failed int) error {
	if !quiet {
		fmt.Fprintf(c.o.Out, "checked %d blobs and %d layers of %d image names, %s: %d damaged\n", s.GetBlobs(), s.GetLayers(), s.GetImages(),
			output.Size(uint64(s.GetBytes())), s.GetDamaged())
		if n := s.GetUncheckedLayers(); n > 0 {
			fmt.Fprintf(c.o.Out, "%d layers are folders (images.snapshotter), of which there are no checksums: only that they are there was seen\n", n)
		}
	}
	switch {
	case s.GetDamaged() == 0 && failed == 0:
		return nil
	case !repair:
		return errors.New("damage was found: pull the images again, or run `berth images fsck --repair`")
	case failed > 0:
		return fmt.Errorf("%d images could not be repaired: pull or import them again", failed)
	}
	return nil
}

func (c *CLI) pruneCommand() *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use:               "prune",
		Short:             "Remove images that no container uses; pinned ones stay",
		Args:              args(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return c.prune(cmd, dry) },
	}
	cmd.Flags().BoolVarP(&dry, "dry-run", "n", false, "only print what would be removed")
	return cmd
}

func (c *CLI) prune(cmd *cobra.Command, dry bool) error {
	client, err := c.client(cmd.Context())
	if err != nil {
		return err
	}
	ctx, cancel := client.Change(cmd.Context(), 0)
	defer cancel()
	answer, err := client.Operator.Prune(ctx, &imagepb.PruneRequest{DryRun: dry})
	if err != nil {
		return client.Error("prune images", err)
	}
	done, total := "removed", "freed"
	if dry {
		done, total = "would remove", "would free"
	}
	var sum int64
	for _, im := range answer.GetImages() {
		sum += im.GetBytes()
		name := criclient.Short(im.GetId())
		if len(im.GetNames()) > 0 {
			name = strings.Join(im.GetNames(), ", ")
		}
		fmt.Fprintf(c.o.Out, "%s %s: %s\n", done, name, output.Size(uint64(im.GetBytes())))
	}
	_, err = fmt.Fprintf(c.o.Out, "%s %s\n", total, output.Size(uint64(sum)))
	return err
}

func (c *CLI) tagCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "tag IMAGE NAME[:TAG]",
		Short:             "Give an image one more name",
		Args:              args(2, 2, "an image and a name"),
		ValidArgsFunction: c.completeImages,
		RunE: func(cmd *cobra.Command, words []string) error {
			client, err := c.client(cmd.Context())
			if err != nil {
				return err
			}
			ctx, cancel := client.Change(cmd.Context(), 0)
			defer cancel()
			answer, err := client.Operator.Tag(ctx, &imagepb.TagRequest{Image: words[0], Name: words[1]})
			if err != nil {
				return client.Error("tag image", err)
			}
			_, err = fmt.Fprintf(c.o.Out, "%s is %s\n", answer.GetName(), criclient.Short(answer.GetImageId()))
			return err
		},
	}
}

// archiveChunk is what one message of an archive holds, in bytes.
const archiveChunk = 256 << 10

func (c *CLI) importCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "import [FILE]",
		Short: "Take images from a tar archive: an OCI layout, or one of `docker save`",
		Long:  "Take images from a tar archive, with gzip, zstd or neither: an OCI layout, or one of `docker save`. Without FILE, or with -, it is read from standard input.",
		Args:  args(0, 1, "one file"),
		RunE: func(cmd *cobra.Command, words []string) error {
			in, source := c.o.In, "standard input"
			if len(words) == 1 && words[0] != "-" {
				f, err := os.Open(words[0])
				if err != nil {
					return err
				}
				defer f.Close()
				in, source = f, words[0]
			} else if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
				return errors.New("import: name a file, or send an archive to standard input")
			}
			return c.importImages(cmd, in, source, name)
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "what the image is called if the archive does not say")
	return cmd
}

func (c *CLI) importImages(cmd *cobra.Command, in io.Reader, source, name string) error {
	client, err := c.client(cmd.Context())
	if err != nil {
		return err
	}
	ctx, cancel := client.Unbounded(cmd.Context())
	defer cancel()
	stream, err := client.Operator.Import(ctx)
	if err != nil {
		return client.Error("import", err)
	}
	meter := newMeter(c.o.Err, "importing "+source)
	defer meter.stop()
	message, buf, sent := &imagepb.ImportRequest{Name: name}, make([]byte, archiveChunk), uint64(0)
	for {
		n, rerr := in.Read(buf)
		if rerr != nil && !errors.Is(rerr, io.EOF) {
			return fmt.Errorf("read %s: %w", source, rerr)
		}
		message.Data = buf[:n]
		if err := stream.Send(message); errors.Is(err, io.EOF) {
			break // the daemon has had enough: CloseAndRecv tells why
		} else if err != nil {
			return client.Error("import", err)
		}
		message, sent = &imagepb.ImportRequest{}, sent+uint64(n)
		meter.set(output.Size(sent))
		if rerr != nil {
			break
		}
	}
	answer, err := stream.CloseAndRecv()
	meter.stop()
	if err != nil {
		return client.Error("import "+source, err)
	}
	for _, im := range answer.GetImages() {
		fmt.Fprintf(c.o.Out, "imported %s: %s\n", strings.Join(im.GetNames(), ", "), criclient.Short(im.GetId()))
	}
	return nil
}

func (c *CLI) exportCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "export IMAGE…",
		Short: "Write images as a tar archive: an OCI layout that `docker load` takes too",
		Long: `Write images as a tar archive that is an OCI layout and that "docker load" takes too, to standard output or with --output to a file.

Layers are written as they came from the registry. Berth keeps them in that form only with images.keep_layers = true.`,
		Args:              args(1, -1, "image"),
		ValidArgsFunction: c.completeImages,
		RunE:              func(cmd *cobra.Command, refs []string) error { return c.export(cmd, refs, file) },
	}
	cmd.Flags().StringVarP(&file, "output", "o", "-", "file to write, which must not exist; -: standard output")
	return cmd
}

func (c *CLI) export(cmd *cobra.Command, refs []string, file string) (err error) {
	client, err := c.client(cmd.Context())
	if err != nil {
		return err
	}
	out := c.o.Out
	if f, ok := out.(*os.File); file == "-" && ok && term.IsTerminal(int(f.Fd())) {
		return errors.New("export: an archive is not for a terminal: use --output or send it on")
	}
	ctx, cancel := client.Unbounded(cmd.Context())
	defer cancel()
	stream, err := client.Operator.Export(ctx, &imagepb.ExportRequest{Images: refs})
	if err != nil {
		return client.Error("export", err)
	}
	first, err := stream.Recv() // before a file is made: most of what can be wrong is wrong at once
	if err != nil {
		return client.Error("export "+strings.Join(refs, ", "), err)
	}
	if file != "-" {
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		defer func() {
			if err = errors.Join(err, f.Close()); err != nil {
				err = errors.Join(err, os.Remove(file))
			}
		}()
		out = f
	}
	for m := first; ; {
		if _, err := out.Write(m.GetData()); err != nil {
			return fmt.Errorf("write archive: %w", err)
		}
		if m, err = stream.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return client.Error("export "+strings.Join(refs, ", "), err)
		}
	}
}
