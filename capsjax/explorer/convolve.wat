;; The inner loops of a convolution, as in network.js: for each weight row of the kernel
;; (dy, dx, c) and each position, adds pixel * row to the position's result. The rows are
;; outermost, so that a kernel of megabytes is read once. Pixels that are zero cost nothing:
;; after a ReLU most are. `row` is the size of a weight row in bytes, a multiple of 32.
(module
  (import "explorer" "memory" (memory 1))
  (func (export "convolve")
    (param $image i32) (param $width i32) (param $channels i32)
    (param $kernel i32) (param $size i32) (param $row i32) (param $stride i32)
    (param $result i32) (param $rows i32) (param $columns i32)
    (local $dy i32) (local $dx i32) (local $c i32) (local $y i32) (local $x i32)
    (local $pixel i32) (local $next i32) (local $weight i32) (local $sum i32)
    (local $value f32) (local $values v128)
    (loop $each_dy
      (local.set $dx (i32.const 0))
      (loop $each_dx
        (local.set $c (i32.const 0))
        (loop $each_channel
          (local.set $next (i32.add (local.get $kernel) (local.get $row)))
          (local.set $sum (local.get $result))
          (local.set $y (i32.const 0))
          (loop $each_y
            ;; image + 4 * (c + channels * (dx + width * (dy + stride * y)))
            (local.set $pixel (i32.add (local.get $image) (i32.shl (i32.add (local.get $c)
              (i32.mul (local.get $channels) (i32.add (local.get $dx)
                (i32.mul (local.get $width) (i32.add (local.get $dy)
                  (i32.mul (local.get $stride) (local.get $y))))))) (i32.const 2))))
            (local.set $x (i32.const 0))
            (loop $each_x
              (local.set $value (f32.load (local.get $pixel)))
              (if (f32.eq (local.get $value) (f32.const 0))
                (then (local.set $sum (i32.add (local.get $sum) (local.get $row))))
                (else
                  (local.set $values (f32x4.splat (local.get $value)))
                  (local.set $weight (local.get $kernel))
                  (loop $each_feature
                    (v128.store (local.get $sum) (f32x4.add (v128.load (local.get $sum))
                      (f32x4.mul (local.get $values) (v128.load (local.get $weight)))))
                    (v128.store offset=16 (local.get $sum)
                      (f32x4.add (v128.load offset=16 (local.get $sum))
                        (f32x4.mul (local.get $values) (v128.load offset=16 (local.get $weight)))))
                    (local.set $sum (i32.add (local.get $sum) (i32.const 32)))
                    (local.set $weight (i32.add (local.get $weight) (i32.const 32)))
                    (br_if $each_feature (i32.lt_u (local.get $weight) (local.get $next))))))
              (local.set $pixel (i32.add (local.get $pixel)
                (i32.shl (i32.mul (local.get $stride) (local.get $channels)) (i32.const 2))))
              (local.set $x (i32.add (local.get $x) (i32.const 1)))
              (br_if $each_x (i32.lt_u (local.get $x) (local.get $columns))))
            (local.set $y (i32.add (local.get $y) (i32.const 1)))
            (br_if $each_y (i32.lt_u (local.get $y) (local.get $rows))))
          (local.set $kernel (local.get $next))
          (local.set $c (i32.add (local.get $c) (i32.const 1)))
          (br_if $each_channel (i32.lt_u (local.get $c) (local.get $channels))))
        (local.set $dx (i32.add (local.get $dx) (i32.const 1)))
        (br_if $each_dx (i32.lt_u (local.get $dx) (local.get $size))))
      (local.set $dy (i32.add (local.get $dy) (i32.const 1)))
      (br_if $each_dy (i32.lt_u (local.get $dy) (local.get $size))))))
